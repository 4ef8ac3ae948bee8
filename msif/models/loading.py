"""From a folder or a hub name to a model and its tokenizer, or one sentence that says why not."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from msif.errors import MsifError
from msif.models.fingerprint import fingerprint_config, fingerprint_weights

TASKS = ("lm", "classification")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# listed by transformers as causal language models, but attending in both directions or time-major
_NOT_CAUSAL = ("xlnet", "xlm", "reformer")

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on its device, its tokenizer, and what identifies it.

    ``weights`` is the fingerprint of the parameters as stored, before any cast; ``config`` that of the configuration.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weights: str
    config: str


def load_model(name_or_path: str | Path, task: str = "lm", dtype: str = "auto", device: str = "auto") -> LoadedModel:
    """Load a decoder-only model.

    Args:
        name_or_path: a folder in the format of transformers, or a name on the Hugging Face Hub.
        task: "lm", or "classification" for a checkpoint with a sequence classification head.
        dtype: "auto" (as stored), "float32", "bfloat16" or "float16".
        device: "auto" (CUDA where there is one, else CPU) or a torch device.

    Raises:
        MsifError: the first thing found wrong, and how to mend it.
    """
    if task not in TASKS:
        raise MsifError(f"There is no task {task!r}: give --task lm or classification.")
    if dtype != "auto" and dtype not in DTYPES:
        raise MsifError(f"There is no dtype {dtype!r}: give --dtype auto, {', '.join(DTYPES)}.")
    target = resolve_device(device)
    name = str(name_or_path)
    source, local = _locate(name)
    with _quiet_transformers():
        config = _load_config(name, source, local)
        _check_architecture(name, config, task)
        tokenizer = _load_tokenizer(name, source, local)
        if task == "classification":
            _set_padding_token(name, config, tokenizer)
        if local and not any(any(Path(source).glob(pattern)) for pattern in _WEIGHT_FILES):
            raise MsifError(f"The folder {name!r} has no weights (model.safetensors): save the model there.")
        model = _load_weights(name, source, local, config, task, "auto")
        _check_finite(name, model)
        weights, settings = fingerprint_weights(model), fingerprint_config(model)
        if dtype != "auto" and any(p.dtype != DTYPES[dtype] for p in model.parameters()):
            # loaded anew, not model.to(dtype): that would also round the buffers of rotary embeddings, and not heed
            # which weights an architecture keeps in float32
            del model
            model = _load_weights(name, source, local, config, task, DTYPES[dtype])
            _check_finite(f"{name} as {dtype}", model)
    return LoadedModel(name, model.to(target).eval(), tokenizer, weights, settings)  # type: ignore[arg-type]


def resolve_device(device: str) -> torch.device:
    """The device of a --device argument.

    Raises:
        MsifError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise MsifError(f"There is no device {device!r}: give --device auto, cpu or cuda.") from error
    if target.type not in ("cpu", "cuda", "mps", "xpu"):
        raise MsifError(f"Device {device!r} cannot hold a model: give --device auto, cpu or cuda.")
    if target.type == "cuda" and not torch.cuda.is_available():
        raise MsifError(f"--device {device} is asked for, but there is no CUDA device here: give --device cpu or auto.")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise MsifError(f"There is no {device} here: the last CUDA device is cuda:{torch.cuda.device_count() - 1}.")
    try:
        torch.zeros(1, device=target)
    except Exception as error:  # each backend fails in its own way
        raise MsifError(f"Device {device!r} cannot be used here: give --device auto, cpu or cuda.") from error
    return target


def _locate(name: str) -> tuple[str, bool]:
    """What to hand to transformers, and whether it is a local folder (which is then never looked for elsewhere)."""
    path = Path(name).expanduser()
    looks_local = name.startswith((".", "~", "/")) or (os.sep in name.rstrip("/") and path.parent.is_dir())
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise MsifError(f"The folder {name!r} has no config.json: give a folder written by save_pretrained.")
        return str(path), True
    if path.exists():
        raise MsifError(f"{name!r} is a file: give the folder that holds config.json and the weights.")
    if looks_local or not _HUB_NAME.fullmatch(name):
        raise MsifError(f"The model folder {name!r} does not exist: check the path.")
    # asked first and once, because transformers tries for half a minute before it gives up; a cached model needs none
    if not isinstance(try_to_load_from_cache(name, "config.json"), str):
        try:
            HfApi().model_info(name, timeout=10)
        except Exception as error:
            raise _not_on_hub(name) from error
    return name, False


def _load_config(name: str, source: str, local: bool) -> Any:
    if local:
        try:
            settings = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MsifError(f"{name}/config.json cannot be read ({_line(error)}): save the model again.") from error
        if not isinstance(settings, dict) or "model_type" not in settings:
            raise MsifError(f"{name}/config.json names no model_type: give a folder written by save_pretrained.")
    try:
        return AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    except Exception as error:
        raise MsifError(f"The configuration of {name!r} cannot be used ({_line(error)}).") from error


def _check_architecture(name: str, config: Any, task: str) -> None:
    kind = config.model_type
    if kind in _NOT_CAUSAL:
        raise MsifError(
            f"{name!r} ({kind}) does not read from left to right: only causal language models are supported."
        )
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if config.is_encoder_decoder or encoder or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        what = "an encoder" if encoder else "not a language model"
        what = "an encoder-decoder" if config.is_encoder_decoder else what
        raise MsifError(f"{name!r} ({kind}) is {what}: only decoder-only language models are supported.")
    if task == "classification" and kind not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise MsifError(f"transformers has no classifier for model type {kind!r} of {name!r}: use --task lm.")


def _load_tokenizer(name: str, source: str, local: bool) -> PreTrainedTokenizerBase:
    mend = "save one there with tokenizer.save_pretrained"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    except Exception as error:
        raise MsifError(f"{name!r} has no tokenizer that can be loaded ({_line(error)}): {mend}.") from error
    # for some model types transformers makes up an empty tokenizer where there are no files
    if tokenizer is None or len(tokenizer) <= len(tokenizer.all_special_ids):
        raise MsifError(f"{name!r} has no tokenizer: {mend}.")
    return tokenizer


def _set_padding_token(name: str, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """A classifier finds the last real token of a padded document by the padding token of its configuration."""
    text = config.get_text_config()
    if text.pad_token_id is not None:
        return
    if tokenizer.pad_token_id is None:
        raise MsifError(
            f"The tokenizer of {name!r} has no padding token, which a classifier needs: set tokenizer.pad_token (the "
            "one used in its training), and save the tokenizer."
        )
    text.pad_token_id = tokenizer.pad_token_id


def _load_weights(
    name: str, source: str, local: bool, config: Any, task: str, dtype: str | torch.dtype
) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM if task == "lm" else AutoModelForSequenceClassification
    try:
        model, info = auto.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            local_files_only=local,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except Exception as error:
        raise MsifError(f"The weights of {name!r} cannot be loaded ({_line(error)}).") from error
    for key, stored, wanted in sorted(info["mismatched_keys"]):
        raise MsifError(
            f"The weight {key!r} of {name!r} has shape {tuple(stored)}, but its config.json asks for "
            f"{tuple(wanted)}: save the model again."
        )
    missing = sorted(info["missing_keys"])
    if missing:
        # what transformers does not find it fills with random numbers
        prefix = f"{model.base_model_prefix}."
        head = all(not key.startswith(prefix) for key in missing)
        if head and task == "classification":
            raise MsifError(f"{name!r} has no classification head ({missing[0]}): fine-tune one, or use --task lm.")
        if head:
            raise MsifError(
                f"{name!r} has no language-modelling head ({missing[0]}): give a language model's checkpoint, or "
                "--task classification for a classifier's."
            )
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise MsifError(f"The checkpoint {name!r} lacks weights of its model ({some}): save it again.")
    return model


@torch.no_grad()
def _check_finite(name: str, model: nn.Module) -> None:
    for key, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            kind = "NaN" if torch.isnan(parameter).any() else "infinity"
            raise MsifError(f"The parameter {key!r} of {name!r} holds {kind}: give a checkpoint with finite weights.")


def _not_on_hub(name: str) -> MsifError:
    # whether it is a mistyped folder or a hub name cannot be told, so the message speaks of both, and of no connection
    return MsifError(
        f"There is no model folder {name!r} here, nor could a model of this name be had from the Hugging Face Hub: "
        "check the path or the name, or download the model and give its folder."
    )


def _line(error: BaseException) -> str:
    """An error's message on one line, short enough to stand within a sentence."""
    text = " ".join(str(error).split()).rstrip(".:") or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


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
