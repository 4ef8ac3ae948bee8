"""The comparison of estimators at a size of a thousand parameters: the size, a text for it, and its command."""

import random
from dataclasses import replace

import pytest

from experiments.spearman import __main__ as command
from experiments.spearman.configuration import NATURAL, TINY

MICRO = replace(
    TINY, hidden=4, heads=1, dampings=("1e-2", NATURAL), candidates=10, arnoldi=(6, 3), full=2, label_samples=(2,)
)


def lines(count, seed):
    source = random.Random(seed)
    words = ["the", "a", "cat", "dog", "river", "stone", "walks", "sees", "finds", "under", "near", "old", "where"]
    return [" ".join(source.choices(words, k=9)) for _ in range(count)]


def write_text(folder):
    folder.mkdir()
    (folder / "train.txt").write_text("\n\n".join(lines(60, 1)), encoding="utf-8")
    (folder / "test.txt").write_text("\n".join(lines(30, 2)), encoding="utf-8")
    return folder


def run(corpus, output, *more):
    """The command, for which the size "tiny" is MICRO."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(command.SIZES, "tiny", MICRO)
        command.main(["--size", "tiny", "--jobs", "1", "--corpus", str(corpus), "--output", str(output), *more])
