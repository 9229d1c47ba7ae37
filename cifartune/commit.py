"""The commit of the code that runs."""

import subprocess
from pathlib import Path

GIT_SECONDS = 10.0
"""How long git may take to name the commit."""


def commit_of_source() -> str:
    """The commit of this source, with -dirty where files differ from it; `unknown` elsewhere."""
    here = Path(__file__)
    git = ["git", "--no-optional-locks", "-C", str(here.parent)]
    asks = [
        ["ls-files", "--error-unmatch", here.name],  # an installed copy may lie in any checkout
        ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    ]
    try:
        answers = [
            subprocess.run(
                [*git, *ask], check=True, capture_output=True, text=True, timeout=GIT_SECONDS
            )
            for ask in asks
        ]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answers[-1].stdout.strip()


def is_code_known(commit: str) -> bool:
    """Whether a commit says which code ran: not where files were changed, or there is no commit."""
    return commit != "unknown" and not commit.endswith("-dirty")
