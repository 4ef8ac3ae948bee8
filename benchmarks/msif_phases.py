"""msif on the benchmark's work: EK-FAC factors and scores, as ratios to a training step.

    python -m benchmarks.msif_phases > msif.json

The phases are those of ``benchmarks.kronfluence_reference``, so that the two reports can be laid side by side:
covariance, eigendecomposition, lambda, query_n (gradients of n queries and their preconditioning), score_n (one pass
over the documents against n preconditioned queries; its peak memory: of both parts), query_and_score_n.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.model import Workload, add_workload_arguments, workload_from
from msif.attribution.gradients import Side
from msif.attribution.scorers import InfluenceScorer
from msif.curvature.covariance import CovariancePass
from msif.curvature.eigenvalues import LambdaPass
from msif.curvature.factors import ModuleFactors
from msif.curvature.fit import FitSettings
from msif.curvature.inputs import device_and_dtype, find_input_groups
from msif.curvature.preconditioners import EKFAC
from msif.data.documents import Batch
from msif.models.capture import Capture
from msif.models.objectives import CausalLM
from msif.models.select import track_modules

PACKAGES = ("msif", "torch", "transformers")


def as_batches(tensors: list[Tensor]) -> list[Batch]:
    """The benchmark's token batches as msif's, every token but the first supervised."""
    result, first = [], 0
    for ids in tensors:
        supervised = torch.ones_like(ids, dtype=torch.bool)
        supervised[:, 0] = False
        rows = torch.arange(first, first + len(ids))
        result.append(Batch(rows, ids, torch.ones_like(ids), supervised))
        first += len(ids)
    return result


class Phases:
    """msif's phases for one workload; factors live in memory."""

    def __init__(self, work: Workload, split_heads: bool) -> None:
        self.work = work
        self.model = work.model()
        self.objective = CausalLM()
        self.settings = FitSettings(seed=work.seed)
        self.tracked = track_modules(self.model, "layers", split_heads)
        self.batches = as_batches(work.data())
        self.groups = find_input_groups(self.model, self.tracked, self.objective, self.batches[0])
        self.factors: dict[str, ModuleFactors] = {}

    def _pass(self, consumer: Any) -> None:
        with Capture(self.model, self.tracked, consumer) as capture:
            for batch in self.batches:
                capture.run(self.objective, batch, self.settings.cotangents(self.objective, consumer.stream))

    def covariance(self) -> None:
        """Forward and backward over the data with sampled labels, accumulating A and G."""
        self.covariances = CovariancePass(self.tracked, self.groups, *device_and_dtype(self.model))
        self._pass(self.covariances)

    def eigendecomposition(self) -> None:
        """Eigenvectors of every A and G, in float64."""
        self.factors = self.covariances.decompose(list(self.groups))

    def lambda_(self) -> None:
        """Forward and backward over the data with sampled labels, accumulating squares in the eigenbasis."""
        consumer = LambdaPass(self.tracked, self.groups, self.factors, *device_and_dtype(self.model))
        self._pass(consumer)
        self.factors = {n: replace(f, Lambda=consumer.Lambda(n)) for n, f in self.factors.items()}

    def score(self, queries: int) -> dict[str, float]:
        """Preconditions the queries, then passes over the data; returns the seconds of the parts and their sum."""
        side = Side(self.model, self.tracked, self.objective)
        scorer = InfluenceScorer(side, side, [EKFAC(self.factors)])
        query, score = (measure.Stopwatch(self.work.device) for _ in range(2))
        with query:
            vectors = scorer.query_vectors(as_batches(self.work.query_data(queries)))
        with score:
            scores = scorer.score_vectors(vectors, self.batches)
        if scores.values.shape != (queries, self.work.sequences):
            raise RuntimeError(f"scored {scores.values.shape}, expected {(queries, self.work.sequences)}")
        parts = {f"query_{queries}": query.seconds, f"score_{queries}": score.seconds}
        return {**parts, f"query_and_score_{queries}": query.seconds + score.seconds}

    def phases(self) -> dict[str, measure.Phase]:
        """Every phase in the order in which one needs the other."""
        found: dict[str, measure.Phase] = {
            "covariance": self.covariance,
            "eigendecomposition": self.eigendecomposition,
            "lambda": self.lambda_,
        }
        for queries in self.work.queries:
            found[f"score_{queries}"] = lambda queries=queries: self.score(queries)
        return found

    def save(self, folder: str) -> None:
        """Writes what later phases need."""
        torch.save((self.covariances.state(), self.covariances.counts), Path(folder) / "covariance.pt")
        torch.save({name: vars(f) for name, f in self.factors.items()}, Path(folder) / "factors.pt")

    def load(self, folder: str, phase: str) -> None:
        """Reads back what ``phase`` needs and no more, without copying it to memory before it is used."""
        if phase == "eigendecomposition":
            state, counts = torch.load(Path(folder) / "covariance.pt", mmap=True)
            self.covariances = CovariancePass(self.tracked, self.groups, *device_and_dtype(self.model))
            self.covariances.load_state(state)
            self.covariances.counts.update(counts)
        elif phase != "covariance":
            saved = torch.load(Path(folder) / "factors.pt", mmap=True)
            self.factors = {name: ModuleFactors(**tensors) for name, tensors in saved.items()}


def peak_of_phase(work: Workload, arguments: argparse.Namespace) -> dict[str, int]:
    """Peak memory of the one phase that ``--peak-of`` names; this process does nothing else."""
    if arguments.peak_of == "train":
        model, data = work.model(), work.data()
        return measure.peak_of(lambda: measure.training_step(model, data), work.device)
    phases = Phases(work, arguments.split_heads)
    phases.load(arguments.factors, arguments.peak_of)
    return measure.peak_of(phases.phases()[arguments.peak_of], work.device)


def benchmark(work: Workload, arguments: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """Times every phase here, then measures each one's peak memory in a process of its own."""
    phases = Phases(work, arguments.split_heads)
    model, data = work.model(), work.data()
    named = phases.phases()
    timings = measure.interleave(
        lambda: measure.training_step(model, data), named, arguments.repeats, device=work.device
    )
    memory = {}
    if not arguments.no_memory:
        with tempfile.TemporaryDirectory() as folder:
            phases.save(folder)
            for name in ["train", *named]:
                extra = ["--peak-of", name, "--factors", folder]
                memory[name] = measure.peak_in_subprocess("benchmarks.msif_phases", [*flags, *extra])
                measure.log(f"{name}: peak {memory[name]['peak_bytes'] / 1e9:.2f} GB")
    settings = {"repeats": arguments.repeats, "split_heads": arguments.split_heads, "modules": list(phases.groups)}
    return measure.report("msif", work, settings, PACKAGES, timings, memory)


def main(flags: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add_workload_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each phase (default: 5)")
    parser.add_argument("--split-heads", action=argparse.BooleanOptionalAction, default=True, help="blocks per head")
    parser.add_argument("--no-memory", action="store_true", help="timings only")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--factors", help=argparse.SUPPRESS)
    arguments = parser.parse_args(flags)
    work = workload_from(arguments)
    found = peak_of_phase(work, arguments) if arguments.peak_of else benchmark(work, arguments, flags)
    print(json.dumps(found, indent=None if arguments.peak_of else 2))


if __name__ == "__main__":
    main(sys.argv[1:])
