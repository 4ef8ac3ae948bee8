"""Make the demo's world and train its model pair: `python -m experiments.demo.train --output results/demo`.

The output holds `world/` (the data), `pretrained/` and `finetuned/` (folders of `transformers`, with the files
`trainer_state.json` and `optimizer.pt`), and `accuracy.json`. Each folder is finished under another name and then
renamed, and carries the settings that it was made from in `demo_settings.json`; a second run with the same settings
keeps it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from experiments.demo.world import World, WorldSize, build_world, write_world

SETTINGS = "demo_settings.json"


class OtherSettings(Exception):
    """A folder is in the way that this program did not make, or made from other settings."""


def make(output: str | Path, seed: int = 0, overwrite: bool = False) -> dict:
    """Build what is missing under `output`; returns the report that `accuracy.json` holds."""
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    world = build_world(seed, WorldSize())
    settings = {"seed": seed, "size": asdict(WorldSize()), "passages": _fingerprint(world)}
    plan: list[tuple[str, dict, Callable[[Path], None]]] = [
        ("world", settings, lambda folder: write_world(world, folder))
    ]

    from experiments.demo import training  # slow to import

    settings = {**settings, "model": asdict(training.ModelSize()), "pretraining": asdict(training.PRETRAINING)}
    plan.append(("pretrained", settings, lambda folder: _pretrain(world, seed, folder)))
    settings = {**settings, "finetuning": asdict(training.FINETUNING)}
    plan.append(("finetuned", settings, lambda folder: _finetune(world, seed, output / "pretrained", folder)))

    for name, wanted, _ in plan:  # before any work
        _check(output / name, wanted, overwrite)
    for name, wanted, build in plan:
        _build(output / name, wanted, build)
    return _report(world, output, settings)


def _fingerprint(world: World) -> str:
    return hashlib.sha256(repr(world).encode()).hexdigest()[:16]


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _check(folder: Path, wanted: dict, overwrite: bool) -> None:
    if not folder.exists() or _read(folder / SETTINGS) == wanted:
        return
    if _read(folder / SETTINGS) is None:
        raise OtherSettings(f"{folder} was not made by this program: choose another --output, or move it away")
    if not overwrite:
        raise OtherSettings(f"{folder} was made with other settings: choose another --output, or add --overwrite")


def _build(folder: Path, wanted: dict, build: Callable[[Path], None]) -> None:
    """Make `folder` with `build`, in a folder beside it that takes its name when it is complete."""
    if _read(folder / SETTINGS) == wanted:
        print(f"{folder}: kept from an earlier run", file=sys.stderr)
        return
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    build(part)
    (part / SETTINGS).write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(part, folder)


def _pretrain(world: World, seed: int, folder: Path) -> None:
    from experiments.demo import training

    texts = [passage.text for passage in world.passages]
    questions = [fact.prompt + fact.completion for fact in world.half("finetune")]
    size = training.ModelSize()
    tokenizer = training.build_tokenizer(texts + questions, size.vocabulary)
    model = training.new_model(tokenizer, size, seed)
    training.pretrain(model, tokenizer, texts, training.PRETRAINING, seed).save(folder, tokenizer)


def _finetune(world: World, seed: int, pretrained: Path, folder: Path) -> None:
    from experiments.demo import training

    model, tokenizer = training.load(pretrained)
    questions = world.half("finetune")
    training.finetune(model, tokenizer, questions, training.FINETUNING, seed).save(folder, tokenizer)


def _report(world: World, output: Path, settings: dict) -> dict:
    """How many questions the fine-tuned model answers; asked again only if its folder is new."""
    path = output / "accuracy.json"
    known = _read(path)
    if known and known.get("settings") == settings:
        return known
    from experiments.demo import training

    model, tokenizer = training.load(output / "finetuned")
    finetuned, asked = world.half("finetune"), world.half("query")
    report = {
        "finetuned_half": training.accuracy(model, tokenizer, finetuned),
        "other_half": training.accuracy(model, tokenizer, asked),
        "other_half_by_relation": {
            relation: training.accuracy(model, tokenizer, [fact for fact in asked if fact.relation == relation])
            for relation in sorted({fact.relation for fact in asked})
        },
        "chance": training.chance(asked),
        "settings": settings,
    }
    part = path.with_name("accuracy.json.part")
    part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
    return report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.demo.train", description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="results/demo", help="folder to fill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides the world, the first weights and the batches")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads (default: 1; so small a model gains little)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace folders that have other settings")
    options = parser.parse_args(arguments)
    wall, cpu = time.perf_counter(), time.process_time()
    import torch
    from transformers.utils import logging

    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()  # those of loading and saving, which take no time here
    try:
        report = make(options.output, options.seed, options.overwrite)
    except OtherSettings as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {time.perf_counter() - wall:.0f} s, {time.process_time() - cpu:.0f} s of CPU time")
    print(
        f"questions answered right: {report['finetuned_half']:.0%} of those fine-tuned on, {report['other_half']:.0%} "
        f"of the other half (the best constant answers: {report['chance']:.0%})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
