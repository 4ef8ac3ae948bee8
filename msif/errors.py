"""The exceptions that a user is meant to read."""


class MsifError(Exception):
    """A mistake that the user can mend.

    The message is one sentence: what is wrong, and what to do. The command lines print it without a stack trace
    and exit with status 2; library callers catch it like any exception.
    """


class UnusableError(MsifError):
    """One row or query cannot take part, which says nothing of the others."""
