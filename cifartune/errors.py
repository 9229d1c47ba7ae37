"""The error that a user can mend."""


class UserError(Exception):
    """A mistake or circumstance that the user can mend.

    `str(error)` is the whole message: it names the file or key, the rule, and what to do.
    The command line prints it without a traceback and exits with code 2.
    """
