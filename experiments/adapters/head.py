"""Low-rank adapters on all linear maps of the layers; the pre-trained weights are frozen."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPTNeoXForCausalLM

from experiments.retraining.two_stage import LanguageHead
from msif.models.adapted import Adapted
from msif.models.adapters import read_adapter
from msif.models.merging import apply_adapter


@dataclass(frozen=True)
class AdapterHead(LanguageHead):
    """
    Attributes:
        rank, scale: of an adapter, which adds scale · BA to a weight; B starts at zero and A is the seed's.
    """

    rank: int = 8
    scale: float = 2.0

    TARGETS: ClassVar[tuple[str, ...]] = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")

    def start(self, pretrained: GPTNeoXForCausalLM, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.scale * self.rank,
            target_modules=list(self.TARGETS),
            task_type="CAUSAL_LM",
        )
        return get_peft_model(copy.deepcopy(pretrained), config)

    def load(self, folder: Path) -> tuple[nn.Module, Adapted | None]:
        """The merged model."""
        base = GPTNeoXForCausalLM.from_pretrained(folder.parent / "pretrained")
        adapter = read_adapter(str(folder), folder)
        assert adapter is not None, f"{folder} holds no adapter"
        return apply_adapter(base, adapter)
