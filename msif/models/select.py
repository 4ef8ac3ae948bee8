"""Which linear maps of a model are tracked, and which of them two models share."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from msif.errors import MsifError
from msif.models.blocks import TrackedModule, augmented_weight, bias_of, is_linear, linear_shape
from msif.models.layouts import blocks_of, in_attention

logger = logging.getLogger(__name__)

_ADAPTERS = re.compile(r"(^|\.)(base_layer|lora_\w+|modules_to_save|token_adapter|prompt_encoder)(\.|$)")


def track_modules(model: nn.Module, modules: str = "all", split_heads: bool = True) -> list[TrackedModule]:
    """The linear maps to track, in the model's order, each with its blocks.

    Args:
        model: a transformers model, of which the decoder layers are considered (not embeddings, unembedding, norms
            and heads); or any other module, of which all linear maps are.
        modules: "attention" (maps inside attention modules), "mlp" (all others), "all"; "everything" (every linear
            map of the model, also outside the layers, and a transformers model's input embedding as a map of one-hot
            tokens); or a regular expression, searched for in the names of all the model's linear maps.
        split_heads: one block per head of q, k and v, by the model's ``config``; else one block per module.

    Raises:
        MsifError: nothing is left to track; a weight is shared between modules, quantised or under an adapter; the
            rows of a projection have no known layout.
    """
    _refuse_wrapped(model)
    layers = _decoder_layers(model)
    tokens = _input_embedding(model) if modules == "everything" else None
    linear = {path: module for path, module in model.named_modules() if is_linear(module) or module is tokens}
    names = {path: _name(model, path) for path in linear}
    if modules in ("all", "attention", "mlp"):
        chosen = [path for path in linear if any(path.startswith(f"{layer}.") for layer in layers) or not layers]
        if modules != "all":
            chosen = [path for path in chosen if in_attention(names[path]) == (modules == "attention")]
    elif modules == "everything":
        chosen = list(linear)
    else:
        pattern = _compiled(modules)
        chosen = [path for path in linear if pattern.search(names[path])]
    odd = [path for path in chosen if not _is_plain(linear[path])]
    chosen = [path for path in chosen if path not in odd]
    if not chosen:
        raise MsifError(_nothing_matched(modules, names, odd, linear))
    if odd:
        logger.warning("Not tracked, because they are not plain linear maps: %s", _some([names[path] for path in odd]))
    if modules in ("all", "mlp"):
        _log_other_weights(model, layers)
    _refuse_shared(model, {path: linear[path] for path in chosen})
    config = getattr(model, "config", None) if split_heads else None
    tracked = []
    for path in chosen:
        d_out, d_in = linear_shape(linear[path])
        blocks = blocks_of(config, names[path], d_out)
        tracked.append(TrackedModule(names[path], path, d_in, d_out, bias_of(linear[path]) is not None, blocks))
    return tracked


def match_modules(first: Sequence[TrackedModule], second: Sequence[TrackedModule]) -> tuple[list[str], dict[str, str]]:
    """The modules that two models share: same name, same shape of W̄, same blocks.

    Returns:
        The shared names in the first model's order; and for every other name of either model why it is left out.

    Raises:
        MsifError: they share nothing.
    """
    ours, theirs = {m.name: m for m in first}, {m.name: m for m in second}
    shared: list[str] = []
    left_out: dict[str, str] = {}
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None:
            left_out[name] = "only in the second model" if a is None else "only in the first model"
        elif getattr(a, "bias", None) != getattr(b, "bias", None):  # of parameters, which have none, shapes say all
            left_out[name] = "with a bias in one model only"
        elif a.shape != b.shape:
            left_out[name] = f"shape {a.shape} in the first model, {b.shape} in the second"
        elif a.blocks != b.blocks:
            left_out[name] = (
                f"split into {len(a.blocks)} block(s) in the first model, otherwise into {len(b.blocks)} in the second"
            )
        else:
            shared.append(name)
    if not shared:
        raise MsifError(
            "The two models share no block: "
            + _some([f"{name!r} is {reason}" for name, reason in left_out.items()], 3, "; ")
            + "; give a model and one that was fine-tuned from it, tracked with the same --modules and --split-heads."
        )
    return shared, left_out


def _decoder_layers(model: nn.Module) -> list[str]:
    """Paths of the lists of decoder layers; empty for a model of which all linear maps count."""
    if not isinstance(model, PreTrainedModel):
        return []
    base = model.base_model
    prefix = "" if base is model else f"{model.base_model_prefix}."
    lists: list[tuple[str, nn.ModuleList]] = []
    for path, module in base.named_modules(prefix=prefix.rstrip(".")):
        outermost = not any(path.startswith(f"{other}.") for other, _ in lists)
        if isinstance(module, nn.ModuleList) and outermost and any(map(is_linear, module.modules())):
            lists.append((path, module))
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    return [path for path, module in lists if len(module) == depth] or [path for path, _ in lists]


def _input_embedding(model: nn.Module) -> nn.Module | None:
    return model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None


def _name(model: nn.Module, path: str) -> str:
    """The path after the base-model prefix, the same for a bare base model and under any head."""
    if not isinstance(model, PreTrainedModel) or model.base_model is model:
        return path
    return path.removeprefix(f"{model.base_model_prefix}.")


def _compiled(modules: str) -> re.Pattern[str]:
    try:
        return re.compile(modules)
    except re.error as error:
        raise MsifError(
            f"{modules!r} is not a regular expression ({error}): give --modules all, attention, mlp or a valid one."
        ) from error


@torch.no_grad()
def _is_plain(module: nn.Module) -> bool:
    """Whether it computes W x + b: subclasses need not (quantised ones, expert routers, scaled embeddings)."""
    weight: Any = module.weight
    if type(weight.data) is not torch.Tensor or not weight.is_floating_point():  # e.g. torchao's quantised tensors
        return False
    if type(module) in (nn.Linear, Conv1D):
        return True
    if isinstance(module, nn.Embedding):
        return type(module) is nn.Embedding and module.max_norm is None and not module.scale_grad_by_freq
    try:
        d_out, d_in = linear_shape(module)
        x = torch.linspace(-1, 1, 2 * d_in, device=weight.device).reshape(1, 2, d_in).to(weight.dtype)
        y = type(module).forward(module, x)  # not module(x), which would run the user's hooks
        W = augmented_weight(module).to(weight.dtype)
        if weight.is_meta:  # a model without numbers can only be asked for shapes
            return isinstance(y, torch.Tensor) and y.shape == (1, 2, d_out)
        expected = x @ W[:, :d_in].T + (W[:, d_in] if module.bias is not None else 0)
        return isinstance(y, torch.Tensor) and y.shape == (1, 2, d_out) and torch.allclose(y, expected, 0.05, 1e-3)
    except Exception:  # whatever such a class does with this input, it is no plain linear map
        return False


def _refuse_wrapped(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if _ADAPTERS.search(path):
            raise MsifError(
                f"The model has an adapter ({path!r}): give a copy with it merged into the weights, "
                "msif.merge_adapter(model), or merge it for good, with model.merge_and_unload()."
            )
        if hasattr(module, "qweight") or hasattr(getattr(module, "weight", None), "quant_state"):
            raise _quantised(path)
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        raise _quantised(type(model).__name__)


def _quantised(path: str) -> MsifError:
    return MsifError(f"The model's weights are quantised ({path!r}): load it in float32, bfloat16 or float16.")


def _refuse_shared(model: nn.Module, tracked: dict[str, nn.Module]) -> None:
    """A gradient through one of two modules is not the gradient of the parameter that they share."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(path)
    for path, module in tracked.items():
        for key, parameter in module._parameters.items():
            others = [other for other in owners.get(id(parameter), []) if other != path]
            if parameter is not None and others:
                raise MsifError(
                    f"{path!r} and {others[0]!r} share one parameter ({key}), which has no block of its own: leave "
                    "them out with --modules REGEX."
                )


def _log_other_weights(model: nn.Module, layers: list[str]) -> None:
    """Name the matrices in the layers that no linear module holds, such as the experts of a mixture."""
    held = {id(p) for module in model.modules() if is_linear(module) for p in module.parameters(recurse=False)}
    left = [
        f"{_name(model, name)} {tuple(parameter.shape)}"
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and id(parameter) not in held and any(name.startswith(f"{p}.") for p in layers)
    ]
    if left:
        logger.warning("Not tracked, because they are not in linear modules (e.g. experts): %s", _some(left))


def _nothing_matched(modules: str, names: dict[str, str], odd: list[str], linear: dict[str, nn.Module]) -> str:
    if odd:
        kinds = sorted({type(linear[path]).__name__ for path in odd})
        return (
            f"None of the modules chosen by --modules {modules!r} is a plain linear map ({', '.join(kinds)}): load the "
            "model without quantisation or wrappers."
        )
    if not names:
        return "The model has no linear map (nn.Linear or Conv1D), so there is nothing to track."
    return f"--modules {modules!r} matches none of the model's linear maps: they are {_some(list(names.values()))}."


def _some(items: list[str], most: int = 6, separator: str = ", ") -> str:
    more = f"{separator}and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more
