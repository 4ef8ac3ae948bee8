"""Scores by Kronfluence: python -m experiments.peers.adapters.kronfluence FOLDER, in its environment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM

from experiments.peers.adapters.serving import Score, Scored, serve
from experiments.peers.exchange import IGNORED, Request, Row

BATCH = 32


class NextTokens(Task):
    """Summed next-token cross-entropy of what is supervised, for documents and as the queries' measurement."""

    def __init__(self, modules: list[str]) -> None:
        super().__init__()
        self.modules = modules

    def compute_train_loss(self, batch: dict[str, Tensor], model: nn.Module, sample: bool = False) -> Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        if sample:
            with torch.no_grad():
                drawn = torch.multinomial(logits.flatten(0, 1).softmax(-1), 1).view_as(labels)
            labels = torch.where(labels == IGNORED, labels, drawn)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")

    def compute_measurement(self, batch: dict[str, Tensor], model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        return self.modules

    def get_attention_mask(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["attention_mask"]


class Fitted:
    """EK-FAC factors of the documents over all linear maps, or over those of the layers."""

    def __init__(self, model_folder: str, documents: list[Row], unembedding: bool) -> None:
        start = time.perf_counter()
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
        task = NextTokens(_linear_maps(model, unembedding))
        model = prepare_model(model, task)
        self.documents = Rows(documents)
        self.work = TemporaryDirectory()
        self.analyzer = Analyzer("peers", model, task, cpu=True, output_dir=self.work.name, disable_tqdm=True)
        self.analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=_padded))
        self.analyzer.fit_all_factors("factors", self.documents, per_device_batch_size=BATCH)
        self.seconds = time.perf_counter() - start

    def scores(self, queries: list[Row], damping: float | None, name: str) -> Any:
        self.analyzer.compute_pairwise_scores(
            name,
            "factors",
            query_dataset=Rows(queries),
            train_dataset=self.documents,
            per_device_query_batch_size=len(queries),
            per_device_train_batch_size=BATCH,
            score_args=ScoreArguments(damping_factor=damping),
        )
        return self.analyzer.load_pairwise_scores(name)["all_modules"].double().numpy()


def prepare(request: Request, documents: list[Row], queries: list[Row]) -> Score:
    fits: dict[bool, Fitted] = {}

    def score(options: Mapping[str, Any], work: Path) -> Scored:
        """Options: "unembedding", whether it counts beside the layers' maps; "damping", None for 0.1 of the mean."""
        unembedding, shared = options["unembedding"], 0.0
        if unembedding in fits:
            shared = fits[unembedding].seconds
        else:
            fits[unembedding] = Fitted(request.model, documents, unembedding)
        return Scored(fits[unembedding].scores(queries, options["damping"], work.name), shared)

    return score


def _linear_maps(model: nn.Module, unembedding: bool) -> list[str]:
    head = model.get_output_embeddings()
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name, module in linear if unembedding or module is not head]


class Rows(Dataset):
    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Row:
        return self.rows[place]


def _padded(rows: list[Row]) -> dict[str, Tensor]:
    """(B, T) each, padded at the end."""
    length = max(len(row.input_ids) for row in rows)
    fill = lambda values, value: torch.tensor([one + [value] * (length - len(one)) for one in values])  # noqa: E731
    return {
        "input_ids": fill([row.input_ids for row in rows], 0),
        "labels": fill([row.labels for row in rows], IGNORED),
        "attention_mask": fill([[1] * len(row.input_ids) for row in rows], 0),
    }


if __name__ == "__main__":
    serve(prepare)
