"""A folder with an adapter (PEFT) in it: what it holds, and which base model it belongs to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from msif.errors import MsifError, one_line

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
WHOLE_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")

_TASKS = {"CAUSAL_LM": "lm", "SEQ_CLS": "classification", None: None, "": None}
_HEAD = re.compile(r"(^|\.)(score|classifier)\.(modules_to_save\.)?weight$")
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|embed_in|wte|word_embeddings|tok_embeddings)\.(modules_to_save\.|base_layer\.)?weight$"
)
_UNEMBEDDING = re.compile(r"(^|\.)(lm_head|embed_out)\.(modules_to_save\.|base_layer\.)?weight$")


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk.

    Attributes:
        name: what the user called it.
        folder: where it is.
        settings: its adapter_config.json.
        shapes: the shape of each of its tensors, by name without the prefix that PEFT adds.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def labels(self) -> int | None:
        """How many outputs its classification head has; None without a head."""
        return self._rows(_HEAD)

    @property
    def tokens(self) -> int | None:
        """How many rows its own embedding has; None without one."""
        return self._rows(_EMBEDDING)

    @property
    def unembeds(self) -> bool:
        """Whether it has an unembedding of its own."""
        return self._rows(_UNEMBEDDING) is not None

    def _rows(self, pattern: re.Pattern[str]) -> int | None:
        return next((shape[0] for name, shape in self.shapes.items() if pattern.search(name)), None)

    def check_task(self, task: str) -> None:
        """
        Raises:
            MsifError: it was trained for another task.
        """
        own = self.settings.get("task_type")
        if own not in _TASKS:
            raise MsifError(f"The adapter {self.name!r} is for the task {own}: give one of a language model.")
        if _TASKS[own] not in (None, task):
            raise MsifError(f"The adapter {self.name!r} is for the task {own}: use --task {_TASKS[own]}.")

    def base(self) -> str:
        """The folder or Hub name of its base model, as written, from here or from the adapter's folder.

        Raises:
            MsifError: it names none.
        """
        named = self.settings.get("base_model_name_or_path")
        if not named or not isinstance(named, str):
            raise MsifError(f"The adapter {self.name!r} names no base model: {self.mend}.")
        beside = self.folder / named
        return str(beside) if not Path(named).expanduser().is_dir() and beside.is_dir() else named

    @property
    def mend(self) -> str:
        """How to say which model is its base."""
        return f"write the base model's folder or Hub name into base_model_name_or_path of {self.folder / CONFIG}"

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Its tensors as they are stored, in the order of their names."""
        yield from sorted(_read(self.folder, self.name).items())


def is_adapter(folder: str | Path) -> bool:
    """Whether an adapter lies in a folder and no whole model."""
    folder = Path(folder).expanduser()
    return (folder / CONFIG).is_file() and not has_whole_weights(folder)


def has_whole_weights(folder: Path) -> bool:
    """Whether the weights of a whole model lie in a folder."""
    return any(file.name not in WEIGHTS for pattern in WHOLE_WEIGHTS for file in folder.glob(pattern))


def read_adapter(name: str, folder: Path) -> Adapter | None:
    """The adapter in a folder; None where there is none.

    Raises:
        MsifError: it cannot be read, has no weights, or lies beside the weights of a whole model.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    if has_whole_weights(folder):
        raise MsifError(
            f"The folder {name!r} holds an adapter and the weights of a whole model, and which of them is meant cannot "
            f"be told: move either away ({CONFIG}, or model.safetensors)."
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        kind = settings["peft_type"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MsifError(f"{name}/{CONFIG} cannot be read ({one_line(error)}): save the adapter again.") from error
    if "PROMPT" in str(kind) or str(kind) in ("P_TUNING", "PREFIX_TUNING", "CPT"):
        raise MsifError(
            f"The adapter {name!r} ({kind}) puts vectors before the text and changes no weight, so it cannot be merged "
            "into the model: explain one that changes weights, such as LoRA."
        )
    if not any((folder / weights).is_file() for weights in WEIGHTS):
        raise MsifError(f"The adapter {name!r} has no weights ({WEIGHTS[0]}): save it there.")
    tensors = _read(folder, name)
    empty = next((key for key, tensor in tensors.items() if tensor.numel() == 0), None)
    if not tensors or empty:
        what = f"the tensor {empty!r} is empty" if empty else "there is no tensor in it"
        raise MsifError(f"The adapter {name!r} was not saved whole ({what}): save it again from all processes.")
    shapes = {key.removeprefix("base_model.model."): tuple(tensor.shape) for key, tensor in tensors.items()}
    return Adapter(name, folder, settings, shapes)


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    import torch
    from safetensors.torch import load_file

    path = next(folder / weights for weights in WEIGHTS if (folder / weights).is_file())
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise MsifError(f"The weights of the adapter {name!r} cannot be read ({one_line(error)}).") from error
