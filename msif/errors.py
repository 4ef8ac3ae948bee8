"""The exceptions that a user is meant to read."""

from collections.abc import Sequence


class MsifError(Exception):
    """A mistake that the user can mend.

    The message is one sentence: what is wrong, and what to do. The command lines print it without a stack trace
    and exit with status 2; library callers catch it like any exception.
    """


class UnusableError(MsifError):
    """One row or query cannot take part, which says nothing of the others."""


def refuse_empty(**paths: object) -> None:
    """
    Raises:
        MsifError: a path is empty, which would be the current folder; it is called by its argument's name.
    """
    for name, path in paths.items():
        if isinstance(path, str) and not path.strip():
            raise MsifError(f"{name} is empty: give a file, folder or name.")


def one_line(error: BaseException) -> str:
    """Another library's message on one line, short enough to stand within a sentence."""
    text = " ".join(str(error).split()).rstrip(".:") or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def some_of(names: Sequence[str], most: int = 12) -> str:
    """Names within a sentence; of many the first."""
    left_out = len(names) - most
    return ", ".join(names[:most]) + (f", and {left_out} more" if left_out > 0 else "")


# what PyTorch, CUDA, its libraries, C++ and the operating system say; MemoryError is Python's and NumPy's own
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on whichever device."""
    said = str(error).lower()
    foreign = isinstance(error, (RuntimeError, OSError)) and any(sign in said for sign in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or foreign or "_alloc_failed" in said
