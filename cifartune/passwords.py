"""Passwords stay out of what others may read: MLflow, messages, and what is printed."""

import re

_IN_URL = re.compile(r"(://[^/:@]*:).*(?=@)|([?&]\w*pass\w*=)[^&]*", re.DOTALL)


def without_password(text: str) -> str:
    """A text, such as an argument of a command, with three stars for the password in its URL.

    Found are passwords behind a user's name, and those in the query:
    `postgresql://user:***@host/db?password=***`.
    """
    return _IN_URL.sub(r"\1\2***", text)


def without_login(url: str) -> str:
    """A server's URL without the user and the password, which urllib takes for a part of a name."""
    return re.sub(r"//[^/]*@", "//", url, count=1)


def hidden_in(text: str, url: str) -> str:
    """A text that may quote `url`, as errors do, without the password in it."""
    return text.replace(url.rstrip("/"), without_password(url.rstrip("/")))
