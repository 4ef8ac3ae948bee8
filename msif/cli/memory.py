"""Memory that runs out in a command: what to give instead, and what is kept."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msif.attribution.methods import PROJECTED
from msif.errors import MsifError, is_out_of_memory


@contextmanager
def memory_advice(advice: Callable[[argparse.Namespace], str], args: argparse.Namespace) -> Iterator[None]:
    """
    Raises:
        MsifError: memory ran out within.
    """
    try:
        yield
    except MsifError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        of = "the GPU's memory" if "cuda" in str(error).lower() else "memory"
        raise MsifError(f"{of} ran out: {advice(args)}.") from error


def of_fit(args: argparse.Namespace) -> str:
    """A fit resumes with batches of the same size only."""
    less = f"give a smaller --batch-tokens (now {args.batch_tokens}), or fewer --modules"
    if not (Path(args.output) / "manifest.json").is_file():
        return less
    return f"{less}, with another --output; {args.output} keeps what is done, and the same command goes on from it"


def of_index(args: argparse.Namespace) -> str:
    """What is indexed is kept whatever the size of batches."""
    less = f"give a smaller --batch-tokens (now {args.batch_tokens})"
    if not (Path(args.output) / "manifest.json").is_file():
        return f"{less}, or a smaller --projection"
    return f"{less}; {args.output} keeps what is done, and the same command goes on from it with any --batch-tokens"


def of_influence(args: argparse.Namespace) -> str:
    """Scores are kept whatever the size of batches."""
    from msif.attribution.partial import partial_files

    smaller = "--projection-size" if args.method in PROJECTED else "--query-rank"
    less = f"give a smaller --batch-tokens (now {args.batch_tokens}), a {smaller}, or fewer queries at once"
    if not args.output or not partial_files(Path(args.output)):
        return less
    return f"{less}; {args.output} keeps the scores so far, from which the same command goes on with any --batch-tokens"
