"""Which parameters of a model are tracked, and which of them two models share."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from msif.errors import MsifError
from msif.models.blocks import Block, TrackedModule, is_linear, stored
from msif.models.layouts import blocks_of
from msif.models.names import in_attention
from msif.models.parameters import find_parameters, short_name
from msif.models.running import find_idle

logger = logging.getLogger(__name__)

GROUPS = ("layers", "all", "attention", "mlp", "maps")

QUERY_MODEL, CANDIDATES_MODEL = "the query's (fine-tuned) model", "the candidates' (pre-trained) model"

_ADAPTERS = re.compile(r"(^|\.)(base_layer|lora_\w+|modules_to_save|token_adapter|prompt_encoder)(\.|$)")


def track_modules(
    model: nn.Module, modules: str = "maps", split_heads: bool = True, vocabulary_basis: str = "identity"
) -> list[TrackedModule]:
    """The parameters to track, in the model's order, each with its blocks.

    Args:
        model: a transformers model, or any other module, all of whose linear maps count as its layers.
        modules: "maps" (all linear maps, so also the unembedding and heads; tied to an embedding it is both); "layers"
            (those of the decoder layers; "all" means the same), "attention" (of these, inside attention modules),
            "mlp" (outside them); "everything" (every parameter: norms, biases, positions, embeddings, tied
            or not, and heads); or a regular expression, searched for in the names of all parameters and their modules.
        split_heads: one block per head of q, k and v, by the model's ``config``; else one block per parameter.
        vocabulary_basis: of an unembedding's rows, see ``vocabulary_blocks``.

    Raises:
        MsifError: nothing is left to track; a weight is quantised or under an adapter; the rows of a projection have no
            known layout; a vocabulary basis that does not exist, or does not divide the vocabulary.
    """
    parts = vocabulary_blocks(vocabulary_basis)
    _refuse_wrapped(model)
    found, odd = find_parameters(model)
    chosen, missed = _choose(model, found, odd, modules)
    idle = find_idle(model, chosen)
    missed |= dict.fromkeys(sorted(idle), "its module does not run in the forward pass")
    chosen = [one for one in chosen if one.name not in idle]
    if not chosen:
        raise MsifError(_nothing_matched(modules, found, missed))
    if missed:
        shares = coverage(model, chosen)
        listed = [f"{name} ({missed[name]})" for name in missed]
        logger.warning("Not tracked: %s; %s", _some(listed, separator="; "), shares)
    config = getattr(model, "config", None) if split_heads else None
    chosen = [replace(one, blocks=blocks_of(config, one.name, one.d_out)) if one.is_map else one for one in chosen]
    return [_with_row_blocks(one, parts) if parts and one.unembeds else one for one in chosen]


def vocabulary_blocks(basis: str) -> int | None:
    """The number of row blocks of an unembedding, each with its own G; None where its rows keep the identity.

    Args:
        basis: "identity": no G, and Λ as large as the weight; "blocks:R": R blocks of rows, which are ids in order
            (a byte-pair tokenizer numbers them by falling frequency); "dense": one block, vocabulary × vocabulary.

    Raises:
        MsifError: none of these.
    """
    if basis == "identity":
        return None
    kind, _, number = basis.partition(":")
    if basis == "dense":
        return 1
    if kind == "blocks" and number.isdecimal() and int(number) > 0:
        return int(number)
    raise MsifError(
        f"the vocabulary basis is {basis!r}: give identity, dense, or blocks:R with a number of row blocks."
    )


def _with_row_blocks(module: TrackedModule, parts: int) -> TrackedModule:
    if module.d_out % parts:
        near = [n for n in range(1, module.d_out + 1) if module.d_out % n == 0 and module.d_out // n >= 16]
        raise MsifError(
            f"module '{module.name}' has {module.d_out} rows, which blocks:{parts} does not divide: give a number of "
            f"blocks that does ({_some(list(map(str, near)), 12)}), or identity."
        )
    rows = module.d_out // parts
    blocks = tuple(Block(i * rows, (i + 1) * rows, "rows", i) for i in range(parts))
    return replace(module, blocks=blocks if parts > 1 else (Block(0, rows),), row_basis="eigenvectors")


def coverage(model: nn.Module, tracked: Sequence[TrackedModule]) -> str:
    """How much of a model is tracked, and what the rest is, largest first."""
    numbers = {id(p): (name, p.numel()) for name, p in model.named_parameters()}
    held = {id(p) for module in tracked for p in stored(model, module) if p is not None}
    total = sum(count for _, count in numbers.values())
    rest = sorted((pair for key, pair in numbers.items() if key not in held), key=lambda pair: -pair[1])
    missing = sum(count for _, count in rest)
    said = f"{total - missing:,} of {total:,} parameters are tracked ({1 - missing / total:.1%})"
    largest = [f"{short_name(model, name)} {count / total:.1%}" for name, count in rest]
    return f"{said}; left out: {_some(largest, 4)}" if rest else said


def _choose(
    model: nn.Module, found: Sequence[TrackedModule], odd: Mapping[str, str], modules: str
) -> tuple[list[TrackedModule], dict[str, str]]:
    """What ``modules`` names, and of it what cannot be tracked, with the reason."""
    if modules == "everything":
        return list(found), {short_name(model, name): why for name, why in odd.items()}
    if modules in GROUPS:
        layers = [] if modules == "maps" else decoder_layers(model)
        wanted = {"attention": (True,), "mlp": (False,)}.get(modules, (True, False))

        def inside(path: str) -> bool:
            within = not layers or any(path.startswith(f"{layer}.") for layer in layers)
            return within and in_attention(short_name(model, path)) in wanted

        chosen = [
            one
            for one in found
            if (one.is_map or modules == "maps") and any(use.kind == "linear" and inside(use.path) for use in one.uses)
        ]
        missed = {name: why for name, why in odd.items() if model.get_parameter(name).ndim >= 2 and inside(name)}
        return chosen, {short_name(model, name): why for name, why in missed.items()}
    pattern = _compiled(modules)
    chosen = [one for one in found if any(pattern.search(name) for name in _names(model, one))]
    missed = {short_name(model, name): why for name, why in odd.items()}
    names = {name: (name, name.rpartition(".")[0]) for name in missed}
    return chosen, {name: why for name, why in missed.items() if any(map(pattern.search, names[name]))}


def _names(model: nn.Module, module: TrackedModule) -> list[str]:
    """All that a regular expression may find it by: its own name, and those of all modules that use it as a matrix."""
    return [module.name, *(short_name(model, use.path) for use in module.uses if use.kind in ("linear", "lookup"))]


def match_modules(
    query: Sequence[TrackedModule], candidate: Sequence[TrackedModule]
) -> tuple[list[str], dict[str, str]]:
    """The modules that two models share: same name, same shape of W̄, same blocks.

    Args:
        query, candidate: of the model on which queries are measured, and of the one that gives candidates' gradients.

    Returns:
        The shared names in the order of the query's model; and for every other name of either why it is left out.

    Raises:
        MsifError: they share nothing.
    """
    ours, theirs = {m.name: m for m in query}, {m.name: m for m in candidate}
    shared: list[str] = []
    left_out: dict[str, str] = {}
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None:
            left_out[name] = f"only in {CANDIDATES_MODEL if a is None else QUERY_MODEL}"
        elif a.bias != b.bias:
            left_out[name] = f"with a bias in {QUERY_MODEL if a.bias else CANDIDATES_MODEL} only"
        elif a.shape != b.shape:
            left_out[name] = f"shape {a.shape} in {QUERY_MODEL}, {b.shape} in {CANDIDATES_MODEL}"
        elif a.blocks != b.blocks:
            parts = f"split into {len(a.blocks)} block(s) in {QUERY_MODEL}"
            left_out[name] = f"{parts}, otherwise into {len(b.blocks)} in {CANDIDATES_MODEL}"
        else:
            shared.append(name)
    if not shared:
        raise MsifError(
            "The two models share no block: "
            + _some([f"{name!r} is {reason}" for name, reason in left_out.items()], 3, "; ")
            + "; give a model and one that was fine-tuned from it, tracked with the same --modules and --split-heads."
        )
    return shared, left_out


def decoder_layers(model: nn.Module) -> list[str]:
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


def _compiled(modules: str) -> re.Pattern[str]:
    try:
        return re.compile(modules)
    except re.error as error:
        raise MsifError(
            f"{modules!r} is not a regular expression ({error}): give --modules maps, layers, attention, mlp, "
            "everything or a valid one."
        ) from error


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


def _nothing_matched(modules: str, found: Sequence[TrackedModule], missed: Mapping[str, str]) -> str:
    if missed:
        name, why = next(iter(missed.items()))
        return (
            f"None of what --modules {modules!r} names can be tracked ({name}: {why}): load the model without "
            "quantisation or wrappers."
        )
    maps = [one.name for one in found if one.is_map]
    if not maps:
        return "The model has no linear map (nn.Linear or Conv1D), so there is nothing to track."
    return f"--modules {modules!r} matches none of the model's parameters: its linear maps are {_some(maps)}."


def _some(items: list[str], most: int = 6, separator: str = ", ") -> str:
    more = f"{separator}and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more
