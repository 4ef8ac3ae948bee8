"""Kronfluence 1.0.1 on the benchmark's work: EK-FAC factors and pairwise scores, as ratios to a training step.

    python -m benchmarks.kronfluence_reference --python .venv-kronfluence/bin/python > kronfluence.json

Phases (names as in msif's own benchmark; n is a number of queries):

    covariance, eigendecomposition, lambda
    query_n    gradients of n queries and their preconditioning
    score_n    one pass over the training documents against n preconditioned queries (its peak memory: of both parts)
    query_and_score_n

Kronfluence's own loops over batches are called directly, below its `Analyzer`, so that no factor is read from or
written to disk inside a timed region, and its two calls of `release_memory` a scoring pass (garbage collection and a
reset of the compiler: about half a second whatever the work) are taken off. Its settings are the defaults (float32,
sampled labels, no low rank); its queries are accumulated over batches, so that one pass over the documents serves all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import measure
from benchmarks.model import Workload, add_workload_arguments, next_token_logits, tracked_modules, workload_from

PACKAGES = ("kronfluence", "torch", "transformers")


def draw_multinomial(logits: Tensor) -> Tensor:
    """Labels as Kronfluence's language-modelling examples draw them."""
    return torch.multinomial(logits.softmax(-1), num_samples=1).flatten()


def draw_inverse_cdf(logits: Tensor) -> Tensor:
    """The same distribution by one random number a position: what a careful user of Kronfluence could write."""
    cumulative = logits.softmax(-1).cumsum(-1)
    height = torch.rand(len(logits), 1, device=logits.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, height).flatten().clamp_(max=logits.shape[-1] - 1)


DRAWS = {"multinomial": draw_multinomial, "inverse-cdf": draw_inverse_cdf}


class Reference:
    """Kronfluence's phases for one workload; factors live in memory and can be saved to and loaded from a folder."""

    def __init__(self, work: Workload, draw: Callable[[Tensor], Tensor], low_precision: bool) -> None:
        # Imported here: the file must load without Kronfluence, to start itself again under `--python`.
        from kronfluence.analyzer import prepare_model
        from kronfluence.task import Task
        from kronfluence.utils.common import factor_arguments, score_arguments
        from kronfluence.utils.state import State

        class LanguageModelling(Task):
            """Summed next-token cross-entropy, for the data and as the queries' measurement."""

            def compute_train_loss(self, batch: dict[str, Tensor], model: nn.Module, sample: bool = False) -> Tensor:
                logits = next_token_logits(model, batch["ids"])
                with torch.no_grad():
                    labels = draw(logits) if sample else batch["ids"][:, 1:].flatten()
                return F.cross_entropy(logits, labels, reduction="sum")

            def compute_measurement(self, batch: dict[str, Tensor], model: nn.Module) -> Tensor:
                return self.compute_train_loss(batch, model)

            def get_influence_tracked_modules(self) -> list[str]:
                return names

        model = work.model()
        names = tracked_modules(model)
        self.work = work
        self.task = LanguageModelling()
        self.model = prepare_model(model, self.task).to(work.device)  # its constants are made on the CPU
        self.state = State(cpu=not work.device.startswith("cuda"))
        if low_precision:
            self.factor_args = factor_arguments.smart_low_precision_factor_arguments()
            self.score_args = score_arguments.smart_low_precision_score_arguments(damping_factor=None)
        else:
            self.factor_args = factor_arguments.default_factor_arguments()
            self.score_args = score_arguments.default_score_arguments(damping_factor=None)
        self.loader = self._loader(work.data())
        self.factors: dict[str, dict[str, Tensor]] = {}

    @staticmethod
    def _loader(batches: list[Tensor]) -> DataLoader:
        """Batches that are made already, so that loading costs nothing."""
        return DataLoader([{"ids": ids} for ids in batches], batch_size=None)

    def covariance(self) -> None:
        """Forward and backward over the data with sampled labels, accumulating A and G."""
        from kronfluence.factor.covariance import fit_covariance_matrices_with_loader

        _, found = fit_covariance_matrices_with_loader(
            self.model, self.state, self.task, self.loader, self.factor_args, disable_tqdm=True
        )
        self.factors.update(found)

    def eigendecomposition(self) -> None:
        """Eigenvectors of every A and G, in float64."""
        from kronfluence.factor.eigen import perform_eigendecomposition

        found = perform_eigendecomposition(self.factors, self.model, self.state, self.factor_args, disable_tqdm=True)
        self.factors.update(found)

    def lambda_(self) -> None:
        """Forward and backward over the data with sampled labels, accumulating squares in the eigenbasis."""
        from kronfluence.factor.eigen import fit_lambda_matrices_with_loader

        _, found = fit_lambda_matrices_with_loader(
            self.model, self.state, self.task, self.loader, self.factor_args, self._eigen(), disable_tqdm=True
        )
        self.factors.update(found)

    def score(self, queries: int, rank: int | None = None) -> dict[str, float]:
        """Preconditions the queries, then passes over the data; returns the seconds of the parts and their sum."""
        from kronfluence.score import dot_product, pairwise

        candidates, housekeeping = (measure.Stopwatch(self.work.device) for _ in range(2))
        batches = self.work.query_data(queries)
        self.score_args.query_gradient_low_rank = rank
        self.score_args.query_gradient_accumulation_steps = len(batches)
        lambdas = {name: self.factors[name] for name in self.factors if "lambda" in name}
        with (
            candidates.around(pairwise, "compute_dot_products_with_loader"),
            housekeeping.around(dot_product, "release_memory"),
            measure.Stopwatch(self.work.device) as whole,
        ):
            scores = pairwise.compute_pairwise_scores_with_loaders(
                loaded_factors={**self._eigen(), **lambdas},
                model=self.model,
                state=self.state,
                task=self.task,
                query_loader=self._loader(batches),
                per_device_query_batch_size=self.work.per_batch,
                train_loader=self.loader,
                score_args=self.score_args,
                factor_args=self.factor_args,
                tracked_module_names=None,
                disable_tqdm=True,
            )
        shape = tuple(scores["all_modules"].shape)
        if shape != (queries, self.work.sequences):
            raise RuntimeError(f"Kronfluence scored {shape}, expected {(queries, self.work.sequences)}")
        name = f"{queries}" if rank is None else f"{queries}_rank{rank}"
        query, score = whole.seconds - candidates.seconds, candidates.seconds - housekeeping.seconds
        return {f"query_{name}": query, f"score_{name}": score, f"query_and_score_{name}": query + score}

    def phases(self, rank: int | None) -> dict[str, measure.Phase]:
        """Every phase in the order in which one needs the other."""
        found: dict[str, measure.Phase] = {
            "covariance": self.covariance,
            "eigendecomposition": self.eigendecomposition,
            "lambda": self.lambda_,
        }
        for queries in self.work.queries:
            found[f"score_{queries}"] = lambda queries=queries: self.score(queries)
        if rank is not None:
            most = max(self.work.queries)
            found[f"score_{most}_rank{rank}"] = lambda: self.score(most, rank)
        return found

    def _eigen(self) -> dict[str, dict[str, Tensor]]:
        return {name: self.factors[name] for name in self.factors if "eigen" in name}

    def save(self, folder: str) -> None:
        """Writes every factor that is in memory."""
        torch.save(self.factors, Path(folder) / "factors.pt")

    def load(self, folder: str, phase: str) -> None:
        """Reads back what `phase` needs and no more, without copying it to memory before it is used."""
        needed = {"covariance": (), "eigendecomposition": ("covariance",), "lambda": ("eigen",)}
        words = needed.get(phase, ("eigen", "lambda"))
        factors = torch.load(Path(folder) / "factors.pt", mmap=True)
        self.factors = {name: found for name, found in factors.items() if any(word in name for word in words)}


def peak_of_phase(work: Workload, arguments: argparse.Namespace) -> dict[str, int]:
    """Peak memory of the one phase that `--peak-of` names; this process does nothing else."""
    if arguments.peak_of == "train":
        model, data = work.model(), work.data()
        return measure.peak_of(lambda: measure.training_step(model, data), work.device)
    reference = Reference(work, DRAWS[arguments.label_draw], arguments.low_precision)
    reference.load(arguments.factors, arguments.peak_of)
    return measure.peak_of(reference.phases(arguments.low_rank)[arguments.peak_of], work.device)


def benchmark(work: Workload, arguments: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """Times every phase here, then measures each one's peak memory in a process of its own."""
    torch.manual_seed(work.seed)
    reference = Reference(work, DRAWS[arguments.label_draw], arguments.low_precision)
    model, data = work.model(), work.data()
    phases = reference.phases(arguments.low_rank)
    timings = measure.interleave(
        lambda: measure.training_step(model, data), phases, arguments.repeats, device=work.device
    )
    kronfluence_arguments = {
        "factor_arguments": reference.factor_args.to_str_dict(),
        "score_arguments": reference.score_args.to_str_dict(),
    }
    memory = {}
    if not arguments.no_memory:
        with tempfile.TemporaryDirectory() as folder:
            reference.save(folder)
            del reference, model
            if work.device.startswith("cuda"):
                torch.cuda.empty_cache()
            for name in ["train", *phases]:
                extra = ["--peak-of", name, "--factors", folder]
                memory[name] = measure.peak_in_subprocess("benchmarks.kronfluence_reference", [*flags, *extra])
                measure.log(f"{name}: peak {memory[name]['peak_bytes'] / 1e9:.2f} GB")
    settings = {
        "repeats": arguments.repeats,
        "label_draw": arguments.label_draw,
        "low_precision": arguments.low_precision,
        "low_rank": arguments.low_rank,
        "modules": tracked_modules(work.model()),
        **kronfluence_arguments,
    }
    return measure.report("kronfluence", work, settings, PACKAGES, timings, memory)


def main(flags: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add_workload_arguments(parser)
    parser.add_argument("--python", help="interpreter of the virtual environment that has Kronfluence")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each phase (default: 5)")
    parser.add_argument("--label-draw", choices=DRAWS, default="multinomial", help="how sampled labels are drawn")
    parser.add_argument("--low-rank", type=int, help="also score the most queries with gradients of this rank")
    parser.add_argument("--low-precision", action="store_true", help="its 'smart' bfloat16 settings, for a GPU")
    parser.add_argument("--no-memory", action="store_true", help="timings only")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--factors", help=argparse.SUPPRESS)
    arguments = parser.parse_args(flags)
    launcher = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    launcher.add_argument("--python")
    rest = launcher.parse_known_args(flags)[1]
    if arguments.python:
        command = [str(Path(arguments.python).absolute()), "-m", "benchmarks.kronfluence_reference", *rest]
        sys.exit(subprocess.run(command, cwd=measure.ROOT).returncode)
    warnings.filterwarnings("ignore", category=FutureWarning, module="kronfluence")
    work = workload_from(arguments)
    found = peak_of_phase(work, arguments) if arguments.peak_of else benchmark(work, arguments, flags)
    print(json.dumps(found, indent=None if arguments.peak_of else 2))


if __name__ == "__main__":
    main(sys.argv[1:])
