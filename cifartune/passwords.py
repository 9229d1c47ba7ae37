"""Passwords stay out of what others may read: MLflow, messages, and what is printed."""

import re

_IN_URL = re.compile(r"(://[^/:@]*:).*(?=@)|([?&]\w*pass\w*=)[^&]*", re.DOTALL)


def without_password(text: str) -> str:
    """A text, such as an argument of a command, with three stars for the password in its URL.

    Found are passwords behind a user's name, and those in the query:
    `postgresql://user:***@host/db?password=***`.
    """
    return _IN_URL.sub(r"\1\2***", text)
