"""What a scoring run will take: sizes by count, time by a short probe."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from msif.attribution.scorers import PairScorer
from msif.curvature.estimate import human_bytes, human_seconds


def describe_scoring(
    scorer: PairScorer, batch: Any, queries: int, candidates: int, factors: Sequence[str | None], index: int = 0
) -> str:
    """Blocks, memory and time of scoring ``candidates`` documents against ``queries``, from one batch of them.

    Args:
        index: sequences that the method's own curvature is taken from, at a pass each.
    """
    side = scorer.candidate_side
    vectors = scorer.zero_vectors(queries)
    ends = []

    def twice() -> Iterator[Any]:
        for _ in range(2):
            yield batch
            ends.append(time.perf_counter())  # its scores are on the CPU by now

    scorer.score_vectors(vectors, twice())
    seconds = (ends[1] - ends[0]) / len(batch)  # the first one warms up
    parameters = sum(module.d_out * module.shape[1] for module in side.tracked)
    blocks = sum(len(module.blocks) for module in side.tracked)
    models = {id(s.model): s.model for s in (side, scorer.query_side)}
    weights = sum(p.numel() * p.element_size() for model in models.values() for p in model.parameters())
    memory = weights + 2 * sum(tensor.numel() * tensor.element_size() for tensor in _tensors(vectors))
    disk = sum(file.stat().st_size for path in factors if path for file in Path(path).iterdir())
    lines = [
        f"blocks      {blocks} shared, in {len(side.tracked)} modules, {parameters:,} parameters",
        f"on disk     {human_bytes(disk)} of factors",
        f"memory      about {human_bytes(memory)} (weights, and {queries} query vectors while they are made)",
        f"time        about {human_seconds(seconds * candidates)} for {candidates} candidates, after preselection",
    ]
    if index:
        lines.append(
            f"            and about {human_seconds(seconds * index)} before, for {index} sequences of index data"
        )
    return "\n".join(lines)


def _tensors(vectors: Any) -> Iterator[Tensor]:
    """All tensors of a scorer's vectors."""
    if isinstance(vectors, Tensor):
        yield vectors
    elif isinstance(vectors, dict):
        for value in vectors.values():
            yield from _tensors(value)
    elif vectors is not None:
        yield from _tensors(vars(vectors))
