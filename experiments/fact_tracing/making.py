"""Making a pair: which facts and sentences, the two stages of training, and what the models then know."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.common.cache import Step, built_all, reported
from experiments.fact_tracing.accuracy import accuracy_report, answered, clozes
from experiments.facts.facts import Fact, FactData
from experiments.facts.halves import FINETUNE, of_half, split, write_data
from experiments.facts.questions import completion, load_clozes, load_questions, question
from experiments.facts.selection import Plain, balanced, divisible, plainly_stated, with_question
from msif.errors import MsifError


@dataclass(frozen=True)
class Selection:
    """Which facts and sentences; see ``selection`` and ``FactData.restricted``."""

    relations: tuple[str, ...] | None = None
    facts: int | None = None
    sentences: int | None = 8
    max_words: int = 30
    max_lead: int = 15
    min_sentences: int = 2
    min_answer: int = 3
    max_answer: int = 8


@dataclass(frozen=True)
class Recipe:
    """The model and its two stages: the arguments of ``training.ModelSize`` and ``training.Schedule``."""

    vocabulary: int = 4096  # at most: a merge needs two occurrences
    model: Mapping[str, int] = field(default_factory=lambda: {"layers": 4, "hidden": 192, "heads": 6})
    pretraining: Mapping[str, float] = field(
        default_factory=lambda: {"epochs": 30, "learning_rate": 2e-3, "batch_size": 32, "weight_decay": 0.1}
    )
    finetuning: Mapping[str, float] = field(
        default_factory=lambda: {"epochs": 15, "learning_rate": 2e-4, "batch_size": 16, "weight_decay": 0.01}
    )


@dataclass(frozen=True)
class Material:
    """The selected data, its halves, and what the facts are asked with."""

    data: FactData
    halves: Mapping[str, str]
    questions: Mapping[str, str]
    clozes: Mapping[str, str]

    def asked(self, fact: Fact) -> tuple[str, str]:
        return question(self.questions[fact.relation], fact.subject), completion(fact.answers[0])

    def fingerprint(self) -> str:
        parts = (self.data.sentences, self.data.facts, self.halves, self.questions, self.clozes)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def prepare(data: FactData, selection: Selection, templates: Path, seed: int) -> Material:
    """Select facts and sentences, and halve the facts.

    Args:
        templates: the folder of ``lama_questions.jsonl`` and ``lama_relations.jsonl``.

    Raises:
        MsifError: a template file is not right, there is no fact of a relation, or nothing is left.
    """
    questions = load_questions(templates / "lama_questions.jsonl")
    asked = with_question(data.restricted(selection.relations), questions)
    plain = plainly_stated(asked, Plain(selection.max_words, selection.max_lead), selection.min_sentences)
    chosen = balanced(plain, selection.min_answer, selection.max_answer, seed)
    small = divisible(chosen.restricted(None, selection.facts, selection.sentences, seed))
    if not small.facts:
        raise MsifError(
            f"no two facts of a relation have a question, {selection.min_sentences} plain sentences of at most "
            f"{selection.max_words} words, and an object that {selection.min_answer} facts share: "
            "lower --min-sentences or --min-answer."
        )
    return Material(small, split(small, seed), questions, load_clozes(templates / "lama_relations.jsonl"))


def make(
    material: Material,
    recipe: Recipe,
    hub: tuple[str, str] | None,
    output: Path,
    seed: int,
    device: str,
    overwrite: bool,
) -> dict[str, Any]:
    """Build what is missing under ``output``; returns the report that ``accuracy.json`` holds.

    Args:
        hub: the names of a pre-trained and a fine-tuned model, in place of training.
    """
    wanted: dict[str, Any] = {"seed": seed, "material": material.fingerprint()}
    plan: list[Step] = [
        (output / "data", wanted, lambda folder: write_data(material.data, material.halves, material.questions, folder))
    ]
    if hub is None:
        wanted = {**wanted, "vocabulary": recipe.vocabulary, "model": recipe.model, "pretraining": recipe.pretraining}
        plan.append((output / "pretrained", wanted, lambda folder: _pretrain(material, recipe, seed, folder)))
        wanted = {**wanted, "finetuning": recipe.finetuning}
        plan.append((output / "finetuned", wanted, lambda folder: _finetune(material, recipe, seed, output, folder)))
    built_all(plan, overwrite)
    models = hub or (str(output / "pretrained"), str(output / "finetuned"))
    return _accuracy(material, models, output / "accuracy.json", {**wanted, "models": list(hub or ())}, device)


def _pretrain(material: Material, recipe: Recipe, seed: int, folder: Path) -> None:
    from experiments.common import training  # slow to import

    texts = [sentence.text for sentence in material.data.sentences]
    tuned = ["".join(material.asked(fact)) for fact in of_half(material.data, material.halves, FINETUNE)]
    tokenizer = training.build_tokenizer(texts + tuned, recipe.vocabulary)
    model = training.new_model(tokenizer, training.ModelSize(**recipe.model), seed)
    examples = training.plain_text(tokenizer, texts)
    if (longest := max(len(ids) for ids, _ in examples)) > model.config.max_position_embeddings:
        raise MsifError(
            f"a sentence has {longest} tokens, and the model {model.config.max_position_embeddings} positions: "
            "lower --max-words."
        )
    training.train(model, examples, training.Schedule(**recipe.pretraining), seed, "pre-training").save(
        folder, tokenizer
    )


def _finetune(material: Material, recipe: Recipe, seed: int, output: Path, folder: Path) -> None:
    from experiments.common import training

    model, tokenizer = training.load(output / "pretrained")
    tuned = of_half(material.data, material.halves, FINETUNE)
    examples = [training.completion(tokenizer, *material.asked(fact)) for fact in tuned]
    training.train(model, examples, training.Schedule(**recipe.finetuning), seed, "fine-tuning").save(folder, tokenizer)


def _accuracy(material: Material, models: tuple[str, str], path: Path, settings: Mapping, device: str) -> dict:
    """What the models know; asked again only if it was not these models and facts."""
    from msif.models.loading import load_model

    pretrained, finetuned = (load_model(name, dtype="float32", device=device) for name in models)
    settings = {**settings, "weights": [loaded.weights for loaded in (pretrained, finetuned)]}

    def report() -> dict:
        right = answered(finetuned.model, finetuned.tokenizer, list(material.data.facts.values()), material.questions)
        placed = clozes(pretrained.model, pretrained.tokenizer, material.data, material.clozes)
        found = accuracy_report(material.data, material.halves, right, placed)
        return {**found, "pretrained": models[0], "finetuned": models[1]}

    return reported(path, settings, report)
