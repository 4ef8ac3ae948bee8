"""The tasks of the experiment, and the processes that they run in."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from experiments.common.running import quiet
from experiments.spearman.bench import Bench
from experiments.spearman.dense import dense_part
from experiments.spearman.direct import ablations, ekfac, kfac, logra, no_curvature, trak
from experiments.spearman.iterative import (
    arnoldi,
    better_preconditioners,
    cg,
    lissa,
    preconditioned_cg,
    preconditioned_lissa,
)
from experiments.spearman.points import Point
from experiments.spearman.truth import exact_groups, full_truth, truth

DENSE = "dense"

# dearest first, so that the processes end together
TASKS: dict[str, Callable[[Bench, str], list[Point]]] = {
    "cg": cg,
    "lissa": lissa,
    "ekfac-cg": preconditioned_cg,
    "ekfac-lissa": preconditioned_lissa,
    "trak": trak,
    "logra": logra,
    "arnoldi": arnoldi,
    "ekfac": ekfac,
    "kfac": kfac,
    "no-curvature": no_curvature,
    "exact-groups": exact_groups,
    "truth": truth,
}
DETAILED: dict[str, Callable[[Bench, str], list[Point]]] = {
    "full-truth": full_truth,
    "ekfac-cg-labels": better_preconditioners,
    "ablations": ablations,
}


@dataclass(frozen=True)
class Workers:
    """Runs tasks, (name, damping), in ``jobs`` processes of ``threads`` threads, or with one job in this one."""

    bench: Bench
    threads: int
    jobs: int

    def run(self, tasks: Sequence[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], list[Point]]]:
        """(task, its points) as they are done."""
        if not tasks:
            return
        made = self.bench.factors, self.bench.eigenpairs  # on disk before processes need them
        del made
        if self.jobs == 1:
            for task in tasks:
                yield task, _done(self.bench, *task)
            return
        # spawned, as a forked process may hang in the threads of torch
        context = multiprocessing.get_context("spawn")
        fresh = Bench(self.bench.world, self.bench.c, self.bench.output, self.bench.seed, self.bench.device)
        with ProcessPoolExecutor(self.jobs, context, _begin, (fresh, self.threads)) as pool:
            futures = {pool.submit(_work, *task): task for task in tasks}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True, wait=False)
                raise


_bench: list[Bench] = []


def _begin(bench: Bench, threads: int) -> None:
    quiet(threads)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _bench.append(bench)


def _work(task: str, damping: str) -> list[Point]:
    return _done(_bench[0], task, damping)


def _done(bench: Bench, task: str, damping: str) -> list[Point]:
    if task == DENSE:
        dense_part(bench, int(damping))
        return []
    return {**TASKS, **DETAILED}[task](bench, damping)
