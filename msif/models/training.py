"""What a stage's own training says of its natural scale: τ, the learning rate summed over steps (docs/method.md).

Reads what the Hugging Face Trainer leaves beside a model: ``trainer_state.json`` (learning rates in its
``log_history``) and ``optimizer.pt`` (Adam's second moments, SGD's momentum).
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msif.errors import MsifError
from msif.models.blocks import TrackedModule, is_transposed

log = logging.getLogger(__name__)

STATE, OPTIMIZER = "trainer_state.json", "optimizer.pt"


def natural_tau(
    folder: str | Path, model: nn.Module, tracked: Sequence[TrackedModule], learning_rate_sum: float | None = None
) -> dict[str, Tensor]:
    """τ of every block of a stage: module name -> (nb,), in units of 1/curvature; 1/τ is the natural damping.

    For SGD τ = Σ η / (1 − momentum). Under Adam a parameter's step is η/(√V + ε) and its own damping (√V + ε)/Σ η. A
    block's 1/τ is the mean of these dampings, so τ = Σ η / mean(√V + ε). The mean of the times 1/(√V + ε) would be
    carried by the few parameters that see next to no gradient, and 1/τ would be as good as zero (docs/digits.md).

    Args:
        learning_rate_sum: Σ η, where it is known; else it is read from ``trainer_state.json``.

    Raises:
        MsifError: names what is missing, or what in the optimizer's state cannot be used.
    """
    folder = Path(folder).expanduser()
    state = _optimizer_state(folder)
    if learning_rate_sum is None:
        learning_rate_sum = _learning_rate_sum(folder)
        if state is None:
            raise MsifError(
                f"there is no optimizer.pt beside {folder}: it holds Adam's second moments, without which a natural "
                "damping is wrong by orders of magnitude; save it, or for an SGD-trained model give "
                "--learning-rate-sum."
            )
    elif state is None:
        log.info("no optimizer.pt beside %s: taken to be trained by SGD, τ = %g", folder, learning_rate_sum)
    if not learning_rate_sum > 0:
        raise MsifError(f"the learning rates of {folder} sum to {learning_rate_sum}: give --learning-rate-sum above 0.")
    group = {"nesterov": False} if state is None else state["param_groups"][0]
    if state is None or "nesterov" in group:
        momentum = float(group.get("momentum", 0.0))
        tau = learning_rate_sum / (1 - momentum)
        return {module.name: torch.full((len(module.blocks),), tau) for module in tracked}
    if "betas" not in group:
        raise MsifError(
            f"the optimizer of optimizer.pt in {folder} is neither SGD nor Adam, and its natural scale is not known: "
            "give numbers for --damping and --alpha."
        )
    moments = _moments_by_name(state, model, folder)
    return {module.name: learning_rate_sum / _mean_root(module, model, moments, folder) for module in tracked}


def training_is_known(folder: str | Path) -> bool:
    """Whether both files that ``natural_tau`` reads lie beside a model; not whether they can be used."""
    folder = Path(folder).expanduser()
    return (folder / STATE).is_file() and (folder / OPTIMIZER).is_file()


def _learning_rate_sum(folder: Path) -> float:
    """Σ η over all steps, by the trapezoidal rule where the log has gaps."""
    path = folder / STATE
    if not path.is_file():
        raise MsifError(
            f"there is no trainer_state.json in {folder}, so 'auto' cannot know its learning rates: "
            "give --learning-rate-sum, or a number for --damping and --alpha."
        )
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        history = [entry for entry in state.get("log_history", []) if "learning_rate" in entry]
        logged = [(int(entry["step"]), float(entry["learning_rate"])) for entry in history]
        steps = int(state.get("global_step", 0))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise MsifError(
            f"{path} cannot be read ({_line(error)}): save it again, or give --learning-rate-sum."
        ) from error
    if not logged:
        raise MsifError(f"{path} logs no learning_rate: give --learning-rate-sum.")
    points = [(0, logged[0][1]), *logged]
    last = max(steps, points[-1][0])
    points.append((last, points[-1][1]))
    return sum((s1 - s0) * (r0 + r1) / 2 for (s0, r0), (s1, r1) in itertools.pairwise(points))


def _optimizer_state(folder: Path) -> Mapping[str, Any] | None:
    path = folder / OPTIMIZER
    if not path.is_file():
        return None
    try:
        # mapped: of a state that is larger than the model twice over, only what is asked for is read
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise MsifError(f"{path} cannot be read ({_line(error)}): save it again, or remove it.") from error
    if not (isinstance(state, Mapping) and "state" in state and state.get("param_groups")):
        raise MsifError(f"{path} holds no state of an optimizer: save optimizer.state_dict(), or remove it.")
    return state


def _line(error: Exception) -> str:
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


@dataclass(frozen=True)
class _Moment:
    """Adam's second moment of one parameter as the optimizer keeps it, short of its start at zero by ``correction``."""

    exp_avg_sq: Tensor
    correction: float
    epsilon: float

    def root(self) -> Tensor:
        """√V̂ + ε, V̂ the corrected moment."""
        return (self.exp_avg_sq.float() / self.correction).sqrt() + self.epsilon


def _moments_by_name(state: Mapping[str, Any], model: nn.Module, folder: Path) -> dict[str, _Moment]:
    """Parameter name -> its second moment.

    An optimizer numbers its parameters; the Trainer puts those with weight decay first, then the others, each in the
    model's order. Shapes must agree all the way, or nothing is believed.
    """
    groups = state["param_groups"]
    names = _trainer_order(model) if len(groups) > 1 else [name for name, _ in model.named_parameters()]
    parameters = dict(model.named_parameters())
    result = {}
    indices = [(index, group) for group in groups for index in group["params"]]
    if len(indices) != len(names):
        raise MsifError(_does_not_fit(folder, f"{len(indices)} parameters where the model has {len(names)}"))
    for (index, group), name in zip(indices, names, strict=True):
        entry = state["state"].get(index)
        if entry is None or "exp_avg_sq" not in entry:
            continue
        V = entry["exp_avg_sq"]
        if V.shape != parameters[name].shape:
            raise MsifError(_does_not_fit(folder, f"shape {tuple(V.shape)} for {name}"))
        correction = 1 - group["betas"][1] ** float(entry["step"])
        if not correction > 0:
            raise MsifError(_does_not_fit(folder, f"no step was taken for {name}"))
        result[name] = _Moment(V, correction, group["eps"])
    return result


def _does_not_fit(folder: Path, detail: str) -> str:
    return (
        f"optimizer.pt in {folder} does not fit the model ({detail}): "
        "give the one of this model, or numbers for --damping and --alpha."
    )


def _trainer_order(model: nn.Module) -> list[str]:
    """The Trainer's grouping: no weight decay on norms and biases."""
    from transformers.trainer_pt_utils import get_parameter_names

    forbidden = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    decayed = set(get_parameter_names(model, [nn.LayerNorm], forbidden))
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if name in decayed] + [name for name in names if name not in decayed]


def _mean_root(module: TrackedModule, model: nn.Module, moments: Mapping[str, _Moment], folder: Path) -> Tensor:
    """Each block's mean of √V̂ + ε, (nb,)."""
    key = f"{module.path}.weight"
    if key not in moments:
        raise MsifError(_does_not_fit(folder, f"no second moment for {key}"))
    root = moments[key].root()
    if is_transposed(model.get_submodule(module.path)):
        root = root.T
    means = root.unflatten(0, (len(module.blocks), -1)).mean(dim=(1, 2))
    if not (means.isfinite() & (means > 0)).all():
        raise MsifError(
            f"the second moments of {key} in {folder / OPTIMIZER} give no scale (NaN, infinity, or zero with ε = 0): "
            "give numbers for --damping and --alpha."
        )
    return means
