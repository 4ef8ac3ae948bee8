"""The models and the sequences of the experiment, made once in the output folder."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from experiments.common.folders import built, read
from experiments.common.training import ModelSize, Schedule, build_tokenizer, load, new_model, train
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
    output: Path, name: str, training: Sequence[str], test: Sequence[str], c: Configuration, seed: int, overwrite: bool
) -> World:
    """Trains what is missing and draws the sequences."""
    settings = {"text": [name, len(training), len(test)], "seed": seed, "model": [c.layers, c.hidden, c.heads]}
    settings |= {"vocabulary": c.vocabulary, "length": c.length, "epochs": c.epochs, "rate": c.learning_rate}
    settings |= {"batch": c.train_batch}

    def pretrain(folder: Path) -> None:
        tokenizer = build_tokenizer(training, c.vocabulary)
        _train(folder, tokenizer, _sequences(tokenizer, training, c.length), c, seed, "training")

    model = built(output / "model", settings, pretrain, overwrite)
    _, tokenizer = load(model)
    trained, tested = (_sequences(tokenizer, lines, c.length) for lines in (training, test))
    halves = [
        _half(output, number, settings, trained, tokenizer, c, seed, overwrite) for number in range(c.trak_models)
    ]
    needed = c.queries + c.solving
    if len(trained) < max(c.solving, c.candidates, c.kernel, *c.fitting) or len(tested) < needed:
        raise MsifError(
            f"the text gives {len(trained)} training and {len(tested)} test sequences of {c.length} tokens, which is "
            "too few for this size: give a longer text with --corpus."
        )
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


def _half(
    output: Path,
    number: int,
    settings: dict[str, Any],
    sequences: list[list[int]],
    tokenizer: PreTrainedTokenizerFast,
    c: Configuration,
    seed: int,
    overwrite: bool,
) -> Path:
    kept = random.Random(f"{seed} {number}").sample(range(len(sequences)), len(sequences) // 2)

    def build(folder: Path) -> None:
        start = time.process_time()
        own = [sequences[i] for i in sorted(kept)]
        _train(folder, tokenizer, own, c, seed + 1 + number, f"training on half {number + 1}")
        write_json(folder / "seconds.json", time.process_time() - start)

    return built(output / "halves" / str(number), {**settings, "half": number}, build, overwrite)


def _train(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    sequences: list[list[int]],
    c: Configuration,
    seed: int,
    name: str,
) -> None:
    model = new_model(tokenizer, ModelSize(c.layers, c.hidden, c.heads, c.length), seed)
    schedule = Schedule(c.epochs, c.learning_rate, c.train_batch)
    train(model, [(ids, 1) for ids in sequences], schedule, seed, name).save(folder, tokenizer)
