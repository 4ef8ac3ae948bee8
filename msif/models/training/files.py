"""What a Trainer leaves beside a model.

``trainer_state.json`` holds steps and logged learning rates, ``optimizer.pt`` moments and the last learning rates,
``scheduler.pt`` what kind of scheduler it was. ``training_args.bin`` would tell the rest; a pickle, it is never opened.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from msif.errors import MsifError, one_line

log = logging.getLogger(__name__)

STATE, OPTIMIZER, SCHEDULER = "trainer_state.json", "optimizer.pt", "scheduler.pt"
SAVED_AS = (OPTIMIZER, "optimizer.bin")  # the latter by accelerate, of a sharded training put together
IN_PIECES = ("global_step*", "optimizer_*", "rank*-of-*-optimizer.pt", "*optim_states.pt")

NUMBERS = "give numbers for --damping and --alpha (--alpha 0 does without it)"
SUM = "give --learning-rate-sum"


class TrainingUnknown(MsifError):
    """A training whose natural scale cannot be told: why, and what to do where it was asked for.

    Args:
        remedies: what helps; numbers do in any case.
    """

    def __init__(self, reason: str, *remedies: str) -> None:
        super().__init__(_told(reason, *remedies, NUMBERS))
        self.reason, self.remedies = reason, remedies

    def and_(self, reason: str, *remedies: str) -> TrainingUnknown:
        """With what else does not tell."""
        return TrainingUnknown(f"{self.reason}, and {reason}", *self.remedies, *remedies)

    def of(self, reader: str, *without: str) -> MsifError:
        """The same where τ itself is read, and no number can stand for it: by what, and ways to do without."""
        return MsifError(_told(f"{reader}, and {self.reason}", *self.remedies, *without))


def _told(reason: str, *remedies: str) -> str:
    return f"{reason}: {', or '.join(filter(None, (', '.join(remedies[:-1]), remedies[-1])))}."


@dataclass(frozen=True)
class TrainerState:
    """Steps that were taken, steps that were planned, and the logged rates by step."""

    steps: int
    planned: int
    logged: Mapping[int, float]


def trainer_state(folder: Path) -> TrainerState:
    """What ``trainer_state.json`` says.

    A step that was logged twice, as a training that was resumed does, counts as it was logged last.

    Raises:
        TrainingUnknown: it is not there, damaged, or tells of no step.
    """
    path = folder / STATE
    if not path.is_file():
        raise TrainingUnknown(
            f"there is no {STATE} in {folder}{_elsewhere(folder)}, so its learning rates are not known", SUM
        )
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        steps, planned = (int(state.get(key) or 0) for key in ("global_step", "max_steps"))
        history = [entry for entry in state.get("log_history") or [] if entry.get("learning_rate") is not None]
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise TrainingUnknown(f"{path} cannot be read ({one_line(error)})", "save it again", SUM) from error
    found = [_logged(entry) for entry in history]
    logged = dict(pair for pair in found if pair is not None)
    if None in found:
        log.warning("%s logs %d learning rates that are no numbers: passed over", path, found.count(None))
    steps = steps if steps > 0 else max(logged, default=0)
    if not steps:
        raise TrainingUnknown(f"{path} cannot be read (it logs no learning_rate and no step)", SUM)
    return TrainerState(steps, max(steps, planned), {step: logged[step] for step in sorted(logged) if step <= steps})


def _logged(entry: Mapping[str, Any]) -> tuple[int, float] | None:
    """Step and rate of an entry of the log; None where they are none."""
    try:
        step, rate = int(entry["step"]), float(entry["learning_rate"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    sensible = step > 0 and 0 <= rate < math.inf and not isinstance(entry["learning_rate"], bool)
    return (step, rate) if sensible else None


def optimizer_state(folder: Path) -> Mapping[str, Any] | None:
    """The state of an optimizer, as ``state_dict()`` gave it; None where none was saved.

    Raises:
        TrainingUnknown: it cannot be read, or lies in pieces.
    """
    path = next((folder / name for name in SAVED_AS if (folder / name).is_file()), None)
    if path is None:
        found = [piece for pattern in IN_PIECES for piece in sorted(folder.glob(pattern))]
        pieces = [piece.name for piece in found if piece.is_dir() or piece.suffix == ".pt"]
        if pieces:
            raise TrainingUnknown(
                f"there is no {OPTIMIZER} in {folder}: its optimizer was saved in pieces ({pieces[0]})"
            )
        return None
    state = _loaded(path)
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    if not (isinstance(state, Mapping) and isinstance(state.get("state"), Mapping) and isinstance(groups, list)):
        groups = None
    if not groups or not all(isinstance(group, Mapping) and "params" in group for group in groups):
        raise TrainingUnknown(f"{path} holds no state of an optimizer", "save optimizer.state_dict()")
    return state


def no_optimizer(folder: Path) -> TrainingUnknown:
    """The state of its optimizer is missed."""
    return TrainingUnknown(
        f"there is no {OPTIMIZER} beside {folder}{_elsewhere(folder)}: it holds Adam's second moments, without which a "
        "natural damping is wrong by orders of magnitude",
        "save it",
        f"for a model that was trained by SGD {SUM}",
    )


def scheduler_state(folder: Path) -> Mapping[str, Any] | None:
    """The state of a scheduler; None where none was saved, empty where it says nothing."""
    path = folder / SCHEDULER
    if not path.is_file():
        return None
    try:
        state = _loaded(path)
    except TrainingUnknown:
        return {}
    return state if isinstance(state, Mapping) else {}


def _loaded(path: Path) -> Any:
    try:
        try:
            # mapped: of a state that is larger than the model twice over, only what is asked for is read
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # a file of an old format cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingUnknown(f"{path} cannot be read ({one_line(error)})", "save it again") from error


def _elsewhere(folder: Path) -> str:
    """A hint at a checkpoint that has what its folder lacks."""
    found = [path for path in folder.glob("checkpoint-*") if (path / STATE).is_file() and (path / OPTIMIZER).is_file()]
    last = max(found, key=lambda path: (path / STATE).stat().st_mtime, default=None)
    return f" ({last.name} in it has one: give that folder)" if last else ""
