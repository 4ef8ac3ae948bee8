"""The checkpoints that a Trainer leaves along a training."""

from __future__ import annotations

import re
from pathlib import Path

from msif.errors import MsifError
from msif.models.training.files import STATE, trainer_state

_NAME = re.compile(r"checkpoint-(\d+)")


def training_segments(checkpoints: str | Path, model: str | Path) -> list[Path]:
    """The folders of a training's checkpoints, ordered by step, with the model that it ended with as the last.

    Args:
        checkpoints: a Trainer's output folder, with ``checkpoint-N`` in it. Where that is the model's own folder and
            holds none, the training is one segment.
        model: the folder of the model; a checkpoint of its own last step, or itself one of these, is not listed twice.

    Raises:
        MsifError: there are no checkpoints, they go beyond the model, or it is not known at which step that was.
    """
    folder, model = Path(checkpoints).expanduser(), Path(model).expanduser()
    if not folder.is_dir():
        raise MsifError(f"there is no folder {folder}: give a Trainer's output folder, with checkpoint-N in it.")
    found = {int(match[1]): path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
    if not found and folder.resolve() != model.resolve():
        raise MsifError(f"{folder} holds no checkpoint-N: give a Trainer's output folder, or the model's own.")
    if not found:
        return [model]
    if not (model / STATE).is_file():
        raise MsifError(
            f"there is no {STATE} in {model}, so which checkpoints led to it is not known: give the last checkpoint, "
            f"{found[max(found)]}, as the model, or save it with trainer.save_state()."
        )
    last = trainer_state(model).steps
    if beyond := [step for step in found if step > last]:
        raise MsifError(
            f"{found[min(beyond)]} was saved after the {last} steps that led to {model}: give the folder of its own "
            "training."
        )
    return [found[step] for step in sorted(found) if step < last] + [model]
