"""What a scoring run will take: sizes by count, time by a short probe."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from msif.attribution.scorers import InfluenceScorer
from msif.attribution.scoring import QueryVectors, ScorePass
from msif.curvature.estimate import human_bytes, human_seconds
from msif.curvature.inputs import device_and_dtype
from msif.models.capture import Capture


def describe_scoring(
    scorer: InfluenceScorer, batch: Any, queries: int, candidates: int, factors: Sequence[str | None]
) -> str:
    """Blocks, memory and time of scoring ``candidates`` documents against ``queries``, from one batch of them."""
    side = scorer.candidate_side
    device, dtype = device_and_dtype(side.model)
    vectors = {}
    for module in side.tracked:
        weight = torch.zeros(queries, module.d_out, module.d_in, device=device, dtype=dtype)
        vectors[module.name] = QueryVectors(weight, weight.new_zeros(queries, module.d_out) if module.bias else None)
    batch = batch.to(device)
    with Capture(side.model, side.tracked, ScorePass(vectors, with_norms=scorer.normalize != "none")) as capture:
        for _ in range(2):  # the first one warms up
            start = time.perf_counter()
            capture.run(side.objective, batch, [side.objective.loss_gradient])
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - start) * candidates / len(batch)
    parameters = sum(module.d_out * module.shape[1] for module in side.tracked)
    blocks = sum(len(module.blocks) for module in side.tracked)
    models = {id(s.model): s.model for s in (side, scorer.query_side)}
    weights = sum(p.numel() * p.element_size() for model in models.values() for p in model.parameters())
    memory = weights + 2 * queries * parameters * torch.finfo(dtype).bits // 8
    disk = sum(file.stat().st_size for path in factors if path for file in Path(path).iterdir())
    return "\n".join(
        [
            f"blocks      {blocks} shared, in {len(side.tracked)} modules, {parameters:,} parameters",
            f"on disk     {human_bytes(disk)} of factors",
            f"memory      about {human_bytes(memory)} (weights, and {queries} query vectors while they are made)",
            f"time        about {human_seconds(seconds)} for {candidates} candidates, after preselection",
        ]
    )
