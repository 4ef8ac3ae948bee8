"""Folders of models that one step moves towards trainings on random halves of a stage's data."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msif.atomic import write_json
from msif.attribution.gradients import Side
from msif.attribution.halves import Halves, foretold
from msif.attribution.moves import moved_side, of_half
from msif.curvature.vectors import Vectors
from msif.errors import MsifError
from msif.models.select import track_modules
from msif.options import Options
from msif.stage import Stage
from msif.trainings import Reader

log = logging.getLogger(__name__)

MANIFEST = "halves.json"


def write_halves(
    first: Stage, last: Stage | None, halves: Halves, output: str | Path, examples: int | None = None
) -> list[Path]:
    """Writes OUTPUT/N/pretrained, and OUTPUT/N/finetuned of a model that was fine-tuned from it, of each half.

    The modules of the first stage's factors are moved, those of the last that are like them by the same displacement
    (``msif.attribution.halves``). Halves that are there are kept.

    Args:
        first: with factors, and the data that they were fitted on.
        examples: so many sequences of these data; None is all.

    Returns:
        The folder of each half.

    Raises:
        MsifError: the folder holds something else, or halves of other models or settings; the data are not there; τ of
            the training is told neither by files nor by the evidence.
    """
    output = Path(output)
    stages = {"pretrained": first} | ({} if last is None else {"finetuned": last})
    folders = [output / str(number) for number in range(halves.count)]
    identity = {
        "halves": halves.told(),
        "examples": examples,
        "learning_rate_sum": first.learning_rate_sum,
        "models": {name: [stage.loaded.weights, str(stage.loaded.model.dtype)] for name, stage in stages.items()},
        "factors": first.store.manifest["run"],
    }
    _check(output, json.loads(json.dumps(identity)))
    missing = [number for number, folder in enumerate(folders) if not folder.is_dir()]
    if missing:
        (known,) = Reader(Options(method="single-stage", scorer={"halves": halves}), first, first).read().known
        batches: Iterable[Any] = first.training(examples) if halves.step else []
        changes = foretold(first.side, first.store, known.tau, batches, halves)
        sides = {"pretrained": first.side} | ({} if last is None else {"finetuned": _like(first, last)})
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / MANIFEST, identity)
        for number in missing:
            _write(folders[number], stages, sides, of_half(changes, number))
            log.info("%s", folders[number])
    return folders


def _check(output: Path, identity: Mapping[str, Any]) -> None:
    if not output.exists() or not any(output.iterdir()):
        return
    path = output / MANIFEST
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        there = None
    if there is None:
        raise MsifError(f"{output} is not empty and holds no foretold halves: choose another --output.")
    if there != identity:
        key = next(key for key in identity if there.get(key) != identity[key])
        raise MsifError(f"{output} holds halves of other {key}: choose another --output or remove that folder.")


def _like(first: Stage, last: Stage) -> Side:
    """The modules of the last model that are like those that the first one tracks."""
    model = last.loaded.model
    theirs = {module.name: module for module in track_modules(model, "everything", split_heads=False)}
    own, left = [], []
    for module in first.tracked:
        other = theirs.get(module.name)
        if other is not None and (other.shape, other.bias) == (module.shape, module.bias):
            own.append(other)
        else:
            left.append(module.name)
    if not own:
        raise MsifError(f"{last.loaded.name} has no module of {first.loaded.name}: give a model fine-tuned from it.")
    if left:
        log.info("not moved in %s, which has no such module: %s", last.loaded.name, ", ".join(left))
    return Side(model, own, last.objective)


def _write(folder: Path, stages: Mapping[str, Stage], sides: Mapping[str, Side], change: Vectors) -> None:
    """Whole or not at all."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        for name, side in sides.items():
            moved_side(side, change).model.save_pretrained(part / name)  # type: ignore[operator]
            stages[name].loaded.tokenizer.save_pretrained(part / name)
        os.replace(part, folder)
    except OSError as error:
        raise MsifError(f"{folder} cannot be written ({error.strerror or error}): choose another --output.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
