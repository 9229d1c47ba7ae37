"""result.json of a finished search, for those who read it."""

import json
from pathlib import Path
from typing import Any

from cifartune.errors import UserError, first_line


def read_outcome(file: Path, resume_command: str) -> dict[str, Any]:
    """What result.json holds.

    Args:
        file: The result.json.
        resume_command: What makes it again.

    Returns:
        Its object. A key that is looked for in it, or in an object of it, and is not there is a
        UserError too, not a KeyError: the file is damaged, or of another version.

    Raises:
        UserError: It cannot be read, or does not say who won.
    """

    class Section(dict[str, Any]):
        def __missing__(self, key: str) -> Any:
            raise unreadable(f"it has no {key}")

    def unreadable(reason: str) -> UserError:
        return UserError(
            f"{file}: cannot be read: {reason}; remove it, and it is made again by: "
            f"{resume_command}"
        )

    try:
        found: dict[str, Any] = json.loads(file.read_text(), object_hook=Section)
        int(found["winner_trial"])
        len(found.get("candidates", ()))
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(first_line(error)) from None
    return found
