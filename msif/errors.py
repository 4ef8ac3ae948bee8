"""The one exception that a user is meant to read."""


class MsifError(Exception):
    """A mistake that the user can mend.

    The message is one sentence: what is wrong, and what to do. The command lines print it without a stack trace
    and exit with status 2; library callers catch it like any exception.
    """


def first_line(error: BaseException) -> str:
    """What another library's exception says, short enough for a sentence."""
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(". ") if lines else type(error).__name__)[:200]
