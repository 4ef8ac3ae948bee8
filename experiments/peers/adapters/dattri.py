"""Scores by dattri-llm: python -m experiments.peers.adapters.dattri FOLDER, in its environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from dattri_llm import (
    AttributionArguments,
    AttributionTask,
    EKFACAttributor,
    HookManagerConfig,
    KFACAttributor,
    TracInAttributor,
)
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM

from experiments.peers.adapters.serving import Score, Scored, serve
from experiments.peers.exchange import IGNORED, Request, Row

ATTRIBUTORS = {"ekfac": EKFACAttributor, "kfac": KFACAttributor, "tracin": TracInAttributor}


def prepare(request: Request, documents: list[Row], queries: list[Row]) -> Score:
    def score(options: Mapping[str, Any], work: Path) -> Scored:
        """Options: an "attributor", "unembedding", whether it counts beside the layers' maps, and other "options"."""
        model = AutoModelForCausalLM.from_pretrained(request.model, dtype=torch.float32)
        # one at a time: its covariances are of all positions, of padding too
        settings = AttributionArguments(
            output_dir=str(work), per_device_train_batch_size=1, per_device_eval_batch_size=1, seed=0
        )
        attributor = ATTRIBUTORS[options["attributor"]](settings, task=AttributionTask(_loss, model))
        hooks = HookManagerConfig(linear_io=_linear_maps(model, options["unembedding"]))
        found = attributor.attribute(Rows(documents), Rows(queries), hook_config=hooks, **options.get("options", {}))
        names, scores = found.agnostic_matrix()
        if len(names) != len(documents):
            raise ValueError(f"{len(names)} documents have scores of {len(documents)}: some are the same to it.")
        return Scored(scores.double().numpy().T)

    return score


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Summed over what is supervised."""
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    return F.cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def _linear_maps(model: nn.Module, unembedding: bool) -> list[str]:
    head = model.get_output_embeddings()
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name, module in linear if unembedding or module is not head]


class Rows(Dataset):
    def __init__(self, rows: list[Row]) -> None:
        self.rows = [{"input_ids": torch.tensor(row.input_ids), "labels": torch.tensor(row.labels)} for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return self.rows[place]


if __name__ == "__main__":
    serve(prepare)
