"""The models and the sequences of the experiment, made once in the output folder."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from experiments.common.cache import built, read
from experiments.common.memory import clock
from experiments.common.training import ModelSize, Schedule, build_tokenizer, new_model, train
from experiments.spearman.configuration import Configuration
from msif.atomic import write_json
from msif.data.documents import Batch, Document, collate
from msif.draws import generator
from msif.errors import MsifError

SELECTION_STREAM = 20


@dataclass(frozen=True)
class World:
    """Sequences of ``length`` tokens, all but the first of each supervised.

    Attributes:
        training: the whole training text.
        solving: of the training text, what H is taken over.
        held_out: as many sequences of the test text that are no query.
        queries, candidates: numbered from 0.
        models: folder of the model; the folders of TRAK's checkpoints.
    """

    training: list[Document]
    solving: list[Batch]
    held_out: list[Batch]
    queries: list[Batch]
    candidates: list[Batch]
    model: Path
    halves: list[Path]

    @property
    def training_seconds(self) -> float:
        """What training all checkpoints on halves took."""
        return sum(read(folder / "seconds.json") for folder in self.halves)


def make_world(
    output: Path,
    text: tuple[str, Sequence[str], Sequence[str]],
    c: Configuration,
    seed: int,
    device: str = "cpu",
    overwrite: bool = False,
) -> World:
    """Draws the sequences and trains what is missing.

    Args:
        text: (name, training lines, test lines).

    Raises:
        MsifError: the text is too short, or the folder holds models of other settings.
    """
    name, training, test = text
    tokenizer = build_tokenizer(training, c.vocabulary)
    trained, tested = (_sequences(tokenizer, lines, c.length) for lines in (training, test))
    needed = c.queries + c.solving
    if len(trained) < max(c.solving, c.candidates, c.kernel, *c.fitting) or len(tested) < needed:
        raise MsifError(
            f"the text gives {len(trained)} training and {len(tested)} test sequences of {c.length} tokens, which is "
            "too few for this size: give a longer text with --corpus."
        )
    settings = {"text": [name, len(training), len(test)], "seed": seed, "model": [c.layers, c.hidden, c.heads]}
    settings |= {"vocabulary": c.vocabulary, "length": c.length, "epochs": c.epochs, "rate": c.learning_rate}
    settings |= {"batch": c.train_batch}
    training_of = _Training(output, settings, tokenizer, c, device, overwrite)
    model = training_of.model("model", {}, trained, seed)
    halves = []
    for number in range(c.trak_models):
        kept = random.Random(f"{seed} {number}").sample(range(len(trained)), len(trained) // 2)
        own = [trained[i] for i in sorted(kept)]
        halves.append(training_of.model(f"halves/{number}", {"half": number}, own, seed + 1 + number))
    drawn = generator(seed, SELECTION_STREAM).permutation(len(tested))
    return World(
        documents(trained),
        batches(_chosen(trained, c.solving, seed, 1), c.batch_size),
        batches([tested[i] for i in drawn[c.queries : needed]], c.batch_size),
        batches([tested[i] for i in drawn[: c.queries]], c.batch_size),
        batches(_chosen(trained, c.candidates, seed, 2), c.batch_size),
        model,
        halves,
    )


@dataclass(frozen=True)
class _Training:
    """What all models of the experiment are trained with."""

    output: Path
    settings: dict[str, Any]
    tokenizer: PreTrainedTokenizerFast
    c: Configuration
    device: str
    overwrite: bool

    def model(self, name: str, settings: dict[str, Any], sequences: list[list[int]], seed: int) -> Path:
        """The folder of a model trained on these sequences, kept from an earlier run."""
        c = self.c

        def build(folder: Path) -> None:
            start = clock(self.device)
            model = new_model(self.tokenizer, ModelSize(c.layers, c.hidden, c.heads, c.length), seed).to(self.device)
            schedule = Schedule(c.epochs, c.learning_rate, c.train_batch)
            train(model, [(ids, 1) for ids in sequences], schedule, seed, f"training {name}").save(
                folder, self.tokenizer
            )
            write_json(folder / "seconds.json", clock(self.device) - start)

        return built(self.output / name, {**self.settings, **settings}, build, self.overwrite)


def documents(sequences: Sequence[Sequence[int]]) -> list[Document]:
    return [
        Document(number, np.asarray(ids, dtype=np.int32), np.arange(len(ids)) > 0)
        for number, ids in enumerate(sequences)
    ]


def batches(sequences: Sequence[Sequence[int]], size: int) -> list[Batch]:
    numbered = documents(sequences)
    return [collate(numbered[start : start + size]) for start in range(0, len(numbered), size)]


def unpacked(batch: Batch) -> list[Document]:
    """The documents of a batch, all of which are as long."""
    return documents([row.tolist() for row in batch.input_ids])


def _chosen(sequences: list[list[int]], count: int, seed: int, number: int) -> list[list[int]]:
    drawn = generator(seed, SELECTION_STREAM, number).permutation(len(sequences))[:count]
    return [sequences[i] for i in drawn]


def _sequences(tokenizer: PreTrainedTokenizerFast, lines: Sequence[str], length: int) -> list[list[int]]:
    """The text as one run of tokens, cut into pieces of ``length``; what is left at the end is dropped."""
    ids = list(chain.from_iterable([*line, tokenizer.eos_token_id] for line in tokenizer(list(lines))["input_ids"]))
    return [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
