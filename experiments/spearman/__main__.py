"""Spearman against time for every estimator: `python -m experiments.spearman`.

Trains a two-layer GPT-NeoX and, for TRAK, checkpoints on random halves; solves for the truth at every damping; runs
every method; writes a table and plots. What is done stays in the output folder, task by task, and is not done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from experiments.common.cache import Cache
from experiments.common.running import add_data_flag, experiment_parser, quiet
from experiments.spearman.bench import Bench
from experiments.spearman.configuration import SIZES, Configuration
from experiments.spearman.dense import part_name
from experiments.spearman.points import arrays_of, points_of
from experiments.spearman.report import report
from experiments.spearman.tasks import DENSE, DETAILED, TASKS, Workers
from experiments.spearman.text import read_text
from experiments.spearman.world import make_world
from msif.cli.parsing import Parser, configuration, run


def parser() -> Parser:
    parser = experiment_parser("spearman", __doc__.splitlines()[0])
    add_data_flag(parser)
    parser.add_argument("--size", choices=SIZES, default="small", help="which configuration (default: %(default)s)")
    parser.add_argument(
        "--corpus",
        help="'ptb', or a folder of train.txt (or valid.txt) and test.txt (default: the Penn Treebank where a hub is "
        "reachable, else wikitext2 in the data folder)",
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="processes, of --threads threads each (default: %(default)s)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse(arguments)
    quiet(args.threads)
    c, output = SIZES[args.size], Path(args.output) / args.size
    name, training, test = read_text(args.corpus, args.data)
    print(f"text: {name}, {len(training)} training and {len(test)} test lines")
    world = make_world(output, (name, training, test), c, args.seed, args.device, args.overwrite)
    workers = Workers(Bench(world, c, output, args.seed, args.device), args.threads, args.jobs)
    tasks = [(task, damping) for task in TASKS for damping in _ordered(c)]
    tasks = [(task, c.detailed) for task in DETAILED] + tasks
    settings = {"seed": args.seed, "model": workers.bench.made_of, "configuration": asdict(c)}
    _put_together(workers)
    cache = Cache(output / "points", settings, overwrite=True)
    missing = [task for task in tasks if not cache.has(_name(*task))]
    with tqdm(total=len(tasks), initial=len(tasks) - len(missing), desc="tasks", disable=None) as bar:
        for task, found in workers.run(missing):
            cache.save(_name(*task), arrays_of(found))
            bar.update()
    results = Path(args.results or output / "report")
    means = {damping: workers.bench.mean_shift(damping) for damping in c.dampings}
    points = [point for task in tasks for point in points_of(cache.load(_name(*task)))]
    report(points, c, results, {**configuration(args), **settings, "mean damping": means})
    print((results / "spearman.md").read_text(encoding="utf-8"))


def _put_together(workers: Workers) -> None:
    """H as a matrix, where the truth needs it; every part that is not there is made."""
    bench = workers.bench
    missing = [part for part in range(bench.c.dense_parts) if not bench.dense.has(part_name(part))]
    for _ in workers.run([(DENSE, str(part)) for part in missing]):
        pass


def _ordered(c: Configuration) -> list[str]:
    """The smallest damping takes longest."""
    absolute = sorted((name for name in c.dampings if name[0].isdigit() and " " not in name), key=float)
    return absolute + [name for name in c.dampings if name not in absolute]


def _name(task: str, damping: str) -> str:
    return f"{task} {damping}"


if __name__ == "__main__":
    run(main)
