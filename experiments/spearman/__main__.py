"""Spearman against time for every estimator: `python -m experiments.spearman`.

Trains a two-layer GPT-NeoX and, for TRAK, checkpoints on random halves; solves for the truth at every damping; runs
every method; writes a table and plots. What is done stays in the output folder, task by task, and is not done again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from experiments.common.folders import read
from experiments.common.running import add_data_flag, experiment_parser, quiet
from experiments.spearman import points
from experiments.spearman.bench import Bench
from experiments.spearman.configuration import SIZES, Configuration
from experiments.spearman.dense import path_of
from experiments.spearman.report import report
from experiments.spearman.tasks import DENSE, DETAILED, TASKS, Workers
from experiments.spearman.text import read_text
from experiments.spearman.world import make_world
from msif.atomic import write_json
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
    _put_together(workers, c, output)
    done = {task: points.load(_path(output, *task), settings) for task in tasks}
    missing = [task for task in tasks if done[task] is None]
    with tqdm(total=len(tasks), initial=len(tasks) - len(missing), desc="tasks", disable=None) as bar:
        for task, found in workers.run(missing):
            points.save(_path(output, *task), found, settings)
            done[task] = found
            bar.update()
    results = Path(args.results or output / "report")
    means = {damping: workers.bench.mean_shift(damping) for damping in c.dampings}
    points_found = [point for found in done.values() for point in found or []]
    report(points_found, c, results, {**configuration(args), **settings, "mean damping": means})
    print((results / "spearman.md").read_text(encoding="utf-8"))


def _put_together(workers: Workers, c: Configuration, output: Path) -> None:
    """H as a matrix, where the truth needs it; every part that is not there is made."""
    folder = output / "dense"
    settings = {"model": workers.bench.made_of, "solving": c.solving, "parts": c.dense_parts}
    if read(folder / "settings.json") != settings:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / "settings.json", settings)
    missing = [part for part in range(c.dense_parts) if not path_of(workers.bench, part).exists()]
    for _ in workers.run([(DENSE, str(part)) for part in missing]):
        pass


def _ordered(c: Configuration) -> list[str]:
    """The smallest damping takes longest."""
    absolute = sorted((name for name in c.dampings if name[0].isdigit() and " " not in name), key=float)
    return absolute + [name for name in c.dampings if name not in absolute]


def _path(output: Path, task: str, damping: str) -> Path:
    return output / "points" / f"{task} {damping}.npz"


if __name__ == "__main__":
    run(main)
