"""From a folder or a hub name to a model and its tokenizer, or one sentence that says why not."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from msif.errors import MsifError, is_out_of_memory, one_line
from msif.models.adapted import Adapted
from msif.models.adapters import Adapter, has_whole_weights, read_adapter
from msif.models.configuration import check_architecture, load_config, take_labels
from msif.models.devices import resolve_device
from msif.models.fingerprint import fingerprint_adapted, fingerprint_config, fingerprint_weights
from msif.models.heads import head_objective, padding_token
from msif.models.merging import apply_adapter
from msif.models.sources import Source, base_source, locate
from msif.models.vocabulary import guard_vocabulary

log = logging.getLogger(__name__)

TASKS = ("lm", "classification")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on its device, its tokenizer, and what identifies it.

    Attributes:
        name: as it was asked for.
        weights: fingerprint of the parameters as stored, before any cast; of an adapter: of its base's and its own.
        config: fingerprint of the configuration.
        adapter: what was trained, where it is an adapter that was merged into its base model's weights, which
            themselves were never trained; else None.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weights: str
    config: str
    adapter: Adapted | None = None


def load_model(name_or_path: str | Path, task: str = "lm", dtype: str = "auto", device: str = "auto") -> LoadedModel:
    """Load a decoder-only model, or an adapter (PEFT) with its base model, merged.

    Args:
        name_or_path: a folder in the format of transformers or PEFT, or a name on the Hugging Face Hub.
        task: "lm", or "classification" for a checkpoint with a sequence classification head.
        dtype: "auto" (as stored), "float32", "bfloat16" or "float16".
        device: "auto" (CUDA where there is one, else CPU) or a torch device; on "meta" a model is made of its
            configuration alone, for estimates.

    Raises:
        MsifError: the first thing found wrong, and how to mend it.
    """
    if task not in TASKS:
        raise MsifError(f"There is no task {task!r}: give --task lm or classification.")
    if dtype != "auto" and dtype not in DTYPES:
        raise MsifError(f"There is no dtype {dtype!r}: give --dtype auto, {', '.join(DTYPES)}.")
    target = resolve_device(device)
    source = locate(str(name_or_path))
    with _quiet_transformers():
        if target.type == "meta":
            return _without_weights(source, task, dtype)
        adapter = read_adapter(source.name, source.folder) if source.folder is not None else None
        loaded = _load_adapted(source, adapter, task, dtype) if adapter else _load_whole(source, task, dtype)
    guard_vocabulary(loaded.model, loaded.tokenizer, loaded.name)
    try:
        loaded.model.to(target)  # type: ignore[arg-type]
    except Exception as error:
        if is_out_of_memory(error):
            raise _too_large(loaded.name, str(target)) from error
        raise
    return loaded


def _load_whole(source: Source, task: str, dtype: str) -> LoadedModel:
    name, config = source.name, load_config(source)
    check_architecture(name, config, task)
    tokenizer = _load_tokenizer(source, config)
    text = config.get_text_config()
    text.pad_token_id = padding_token(name, config, tokenizer, task, text.vocab_size)
    if task == "classification":
        head_objective(config, name)  # refuses what it cannot be
    if source.folder is not None and not has_whole_weights(source.folder):
        raise MsifError(f"The folder {name!r} has no weights (model.safetensors): save the model there.")
    model, missing = _load_weights(source, config, task, "auto")
    _refuse_missing(source, model, missing, task)
    _check_finite(name, model)
    weights, settings = fingerprint_weights(model), fingerprint_config(model)
    if dtype != "auto" and any(p.dtype != DTYPES[dtype] for p in model.parameters()):
        # loaded anew, not model.to(dtype): that would also round the buffers of rotary embeddings, and not heed
        # which weights an architecture keeps in float32
        del model
        model, _ = _load_weights(source, config, task, DTYPES[dtype])
        _check_finite(f"{name} as {dtype}", model)
    return LoadedModel(name, model.eval(), tokenizer, weights, settings)


def wrap_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    """A model that is in memory already, with what identifies it."""
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    return LoadedModel(name, model, tokenizer, fingerprint_weights(model), fingerprint_config(model))


def _without_weights(source: Source, task: str, dtype: str) -> LoadedModel:
    """A model of shapes alone; its configuration and tokenizer are all that is read."""
    config = load_config(source)
    check_architecture(source.name, config, task)
    tokenizer = _load_tokenizer(source, config)
    auto: Any = AutoModelForCausalLM if task == "lm" else AutoModelForSequenceClassification
    stored = DTYPES.get(dtype, getattr(config, "dtype", None) or torch.float32)
    with torch.device("meta"):
        # fused attention looks at the numbers of a mask
        model = auto.from_config(config, dtype=stored, attn_implementation="eager")
    return LoadedModel(source.name, model.eval(), tokenizer, "", fingerprint_config(model))


def _load_adapted(source: Source, adapter: Adapter, task: str, dtype: str) -> LoadedModel:
    """The base model with an adapter in its weights."""
    adapter.check_task(task)
    name, base = source.name, base_source(adapter)
    config = load_config(base)
    check_architecture(base.name, config, task)
    tokenizer = _load_tokenizer(source if _has_tokenizer(Path(source.path)) else base, config)
    text = config.get_text_config()
    pad = padding_token(name, config, tokenizer, task, adapter.tokens or text.vocab_size)
    text.pad_token_id = pad if pad is not None and pad < text.vocab_size else None
    if task == "classification":
        take_labels(config, adapter)
        head_objective(config, name)
    model, missing = _load_weights(base, config, task, "auto")
    _refuse_missing(base, model, {key for key in missing if key not in adapter.shapes}, task)
    _refuse_quantised(base, model)
    _check_finite(base.name, model)
    weights = fingerprint_adapted(model, missing, adapter)
    stored = model.dtype
    if dtype != "auto" and any(p.dtype != DTYPES[dtype] for p in model.parameters()):
        del model
        model, _ = _load_weights(base, config, task, DTYPES[dtype])
    merged: Any
    merged, adapted = apply_adapter(model, adapter)
    merged.config.get_text_config().pad_token_id = pad
    _check_finite(f"{name} in {base.name}", merged)
    rounded = "" if merged.dtype in (torch.float32, torch.float64) else f", then rounded to {_short(merged.dtype)}"
    advice = "" if not rounded or merged.dtype != stored else " as the base is stored (--dtype float32 keeps all of it)"
    log.info("%s: an adapter, merged in memory into %s in float32%s%s", name, base.name, rounded, advice)
    return LoadedModel(name, merged.eval(), tokenizer, weights, fingerprint_config(merged), adapted)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("tokenizer_config.json", "tokenizer.json"))


def _load_tokenizer(source: Source, config: Any) -> PreTrainedTokenizerBase:
    mend = "save one there with tokenizer.save_pretrained"
    try:
        # with the configuration as it was read: an adapter's folder has none, and some cannot be read again as they are
        tokenizer = AutoTokenizer.from_pretrained(source.path, config=config, **source.options)
    except Exception as error:
        raise MsifError(f"{source.name!r} has no tokenizer that can be loaded ({one_line(error)}): {mend}.") from error
    # for some model types transformers makes up an empty tokenizer where there are no files
    if tokenizer is None or len(tokenizer) <= len(tokenizer.all_special_ids):
        raise MsifError(f"{source.name!r} has no tokenizer: {mend}.")
    return tokenizer


def _load_weights(source: Source, config: Any, task: str, dtype: str | torch.dtype) -> tuple[PreTrainedModel, Set[str]]:
    """The model, and the names of the weights that its checkpoint lacks."""
    auto: Any = AutoModelForCausalLM if task == "lm" else AutoModelForSequenceClassification
    name = source.name
    try:
        model, info = auto.from_pretrained(
            source.path,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **source.options,
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise _too_large(name, "this machine") from error
        if getattr(config, "quantization_config", None):
            raise _quantised(name, one_line(error)) from error
        raise MsifError(
            f"The weights of {name!r} cannot be loaded ({one_line(error)}): save or download them again."
        ) from error
    for key, stored, wanted in sorted(info["mismatched_keys"]):
        raise MsifError(
            f"The weight {key!r} of {name!r} has shape {tuple(stored)}, but its config.json asks for "
            f"{tuple(wanted)}: save the model again."
        )
    return model, set(info["missing_keys"])


def _refuse_missing(source: Source, model: PreTrainedModel, missing: Set[str], task: str) -> None:
    """What transformers does not find it fills with random numbers."""
    if not missing:
        return
    name, first = source.name, min(missing)
    prefix = f"{model.base_model_prefix}."
    head = all(not key.startswith(prefix) for key in missing)
    if head and task == "classification":
        raise MsifError(f"{name!r} has no classification head ({first}): fine-tune one, or use --task lm.")
    if head:
        raise MsifError(
            f"{name!r} has no language-modelling head ({first}): give a language model's checkpoint, or "
            "--task classification for a classifier's."
        )
    some = ", ".join(sorted(missing)[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    raise MsifError(f"The checkpoint {name!r} lacks weights of its model ({some}): save it again.")


def _refuse_quantised(source: Source, model: Any) -> None:
    if getattr(model, "hf_quantizer", None) is not None:
        raise _quantised(source.name, "an adapter cannot be merged into such")


def _quantised(name: str, reason: str) -> MsifError:
    return MsifError(
        f"The weights of {name!r} are quantised ({reason}): give the model in float32, bfloat16 or float16; of an "
        "adapter, write that one into base_model_name_or_path of its adapter_config.json."
    )


def _too_large(name: str, where: str) -> MsifError:
    return MsifError(
        f"The model {name!r} does not fit into the memory of {where}: give --dtype bfloat16, or --device with more."
    )


@torch.no_grad()
def _check_finite(name: str, model: nn.Module) -> None:
    for key, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            kind = "NaN" if torch.isnan(parameter).any() else "infinity"
            raise MsifError(f"The parameter {key!r} of {name!r} holds {kind}: give a checkpoint with finite weights.")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars, load reports and warnings: what matters in them is raised here as an error."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
