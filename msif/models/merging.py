"""Merging adapters into the weights that they change, in memory, by the `peft` library."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from msif.errors import MsifError, one_line
from msif.models.adapted import Adapted, adapted_by
from msif.models.adapters import Adapter

# by how much a merged model's outputs may differ from those of the adapter beside its base, relatively
_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6}


def apply_adapter(model: nn.Module, adapter: Adapter) -> tuple[nn.Module, Adapted]:
    """A model with an adapter merged into its weights, which are changed, and what that trained; each keeps its dtype.

    Raises:
        MsifError: `peft` is not installed, or the adapter does not fit the model or cannot be merged.
    """
    peft = _peft(f"{adapter.name!r} is an adapter")
    if adapter.tokens is not None and adapter.tokens != _rows(model):
        _resize(model, adapter)
    with _sentences(adapter.name):
        config = peft.PeftConfig.from_pretrained(str(adapter.folder))
        kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, peft.PeftModel)
        wrapped = kind(model, config)
        renamed = getattr(model, "_checkpoint_conversion_mapping", None) or None
        result = wrapped.load_adapter(str(adapter.folder), "default", torch_device="cpu", key_mapping=renamed)
    # of a module that is saved whole, PEFT writes copies under the names of its wrapper
    left = [key for key in result.unexpected_keys if ".modules_to_save." not in key and ".original_module." not in key]
    for key in result.missing_keys:
        raise MsifError(f"The adapter {adapter.name!r} has no {key!r}, which its settings ask for: save it again.")
    for key in left:
        raise MsifError(
            f"The adapter {adapter.name!r} does not fit its base model, which has no {key!r}: {adapter.mend}."
        )
    settings = adapter.settings
    layers = _layers(wrapped.get_base_model())
    adapted = adapted_by(adapter.name, str(settings["peft_type"]), str(settings.get("bias", "none")), layers)
    return _merged(wrapped.eval(), adapter.name), adapted


def merge_adapter(model: nn.Module) -> nn.Module:
    """A copy of a model with its PEFT adapters merged into the weights; the given model stays as it is.

    Args:
        model: a ``PeftModel`` of any module, or a transformers model with adapters in it (``load_adapter``).

    Raises:
        MsifError: there is no adapter in it, or one that cannot be merged.
    """
    _peft("The model is to be merged")
    training = model.training
    copied = copy.deepcopy(model).eval()
    return _merged(copied, type(model).__name__).train(training)


def _merged(model: nn.Module, name: str) -> nn.Module:
    """The model without its adapters' modules, their changes in its weights."""
    from peft import PeftModel

    inner: Any = model
    if isinstance(model, PeftModel):
        inner = model.get_base_model()
        if model.active_peft_config.is_prompt_learning:
            raise MsifError(
                f"The adapter {name!r} puts vectors before the text and changes no weight, so it cannot be merged into "
                "the model: explain one that changes weights, such as LoRA."
            )
    outer = _layers(inner)
    if not outer:
        raise MsifError(f"{name!r} has no adapter that changes weights: give one with LoRA or the like.")
    speaks = isinstance(inner, PreTrainedModel)  # of any other module it is not known what it reads
    with torch.no_grad():
        before = _outputs(model) if speaks else torch.ones(1)
        _untie(inner, outer.values())
        for path, layer in outer.items():
            with _sentences(name):
                plain = _unloaded(layer)
            parent, _, child = path.rpartition(".")
            setattr(inner.get_submodule(parent), child, plain)
        _forget_adapters(inner)
        after = _outputs(inner) if speaks else torch.ones(1)
    if not (after - before).norm() <= _ROUNDING.get(next(inner.parameters()).dtype, 0.1) * before.norm():
        raise MsifError(
            f"The adapter {name!r} cannot be merged: the model would compute something else; explain a model that was "
            "saved with whole weights."
        )
    return inner


def _layers(model: Any) -> dict[str, Any]:
    """Path of a module -> the layer that PEFT put around it, the outermost where it put several."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    }
    return {path: layer for path, layer in layers.items() if not any(path.startswith(f"{other}.") for other in layers)}


def _unloaded(layer: Any) -> nn.Module:
    """The module under an adapter's layer, the adapter merged into it in float32 or better, in the dtype that it had.

    An adapter that was cast with its model would be multiplied out in bfloat16, and so rounded before it is added.
    """
    if hasattr(layer, "unload_and_optionally_merge_module"):
        base, merge = getattr(layer, "original_module", layer), layer.unload_and_optionally_merge_module
    else:
        base, merge = layer.get_base_layer(), None
    dtypes = {name: parameter.dtype for name, parameter in base.named_parameters()}
    for parameter in layer.parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    if merge is not None:
        base = merge(merge=True, safe_merge=False, adapter_names=None)
    else:
        if not layer.disable_adapters:
            layer.merge()
        base = layer.get_base_layer()
    for name, parameter in base.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(name, parameter.dtype))
    return base


def _untie(model: Any, layers: Iterable[Any]) -> None:
    """Gives each map that an adapter changes a weight of its own, where it shares one with another module."""
    uses = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    for layer in layers:
        base = layer.get_base_layer() if hasattr(layer, "base_layer") else None
        for name, parameter in [] if base is None else list(base.named_parameters(recurse=False)):
            if uses[id(parameter)] > 1:
                setattr(base, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
                if isinstance(model, PreTrainedModel):
                    model.config.tie_word_embeddings = False


def _outputs(model: nn.Module) -> Tensor:
    """What a model says to a few tokens: whatever an adapter is, merging it must leave that as it is."""
    device = next(model.parameters()).device
    ids = torch.arange(1, 9, device=device)[None] % _rows(model)
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits.float()


def _rows(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _resize(model: Any, adapter: Adapter) -> None:
    """Room for the tokens that were added in the adapter's training."""
    assert adapter.tokens is not None
    head = model.get_output_embeddings()
    tied = head is None or head.weight is model.get_input_embeddings().weight
    if not tied and not adapter.unembeds:
        raise MsifError(
            f"The adapter {adapter.name!r} has an embedding of {adapter.tokens} tokens and its base one of "
            f"{_rows(model)}, but no unembedding (lm_head) for them: save it with save_embedding_layers=True."
        )
    model.resize_token_embeddings(adapter.tokens, mean_resizing=False)


def _forget_adapters(model: Any) -> None:
    """What PEFT and transformers note of adapters on a model."""
    for note in ("peft_config", "_hf_peft_config_loaded"):
        if note in vars(model):
            delattr(model, note)


def _peft(what: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise MsifError(f"{what}, which the package peft merges: pip install 'msif[adapters]'.") from error
    return peft


@contextmanager
def _sentences(name: str) -> Iterator[None]:
    """PEFT's warnings are seen to here, and its errors are sentences."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MsifError:
        raise
    except Exception as error:  # each tuner fails in its own way
        raise MsifError(f"The adapter {name!r} cannot be merged into its model ({one_line(error)}).") from error
