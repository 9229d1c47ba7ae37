"""What ends a command early, other than a defect."""


class UserError(Exception):
    """A mistake or circumstance that the user can mend.

    `str(error)` is the whole message: it names the file or key, the rule, and what to do.
    The command line prints it without a traceback and exits with code 2.
    """


class Interrupted(Exception):
    """The user stopped the search. What is finished is kept, and the search can be resumed."""


def first_line(error: BaseException) -> str:
    """An error in one line, for people."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
