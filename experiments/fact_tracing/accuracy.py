"""What the models of a pair know: answers to the questions of both halves, and the objects of cloze sentences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from experiments.facts.facts import Fact, FactData
from experiments.facts.halves import FINETUNE, QUERY, of_half
from experiments.facts.questions import cloze, completion, question
from msif.reporting.tables import Table


@dataclass(frozen=True)
class Placed:
    """The object asked for, among all objects of its relation.

    Attributes:
        rank: from 1; one of equal probability comes before it.
        probability: its share of the probability of all of them, so that they sum to one.
    """

    rank: int
    probability: float


def answered(model: Any, tokenizer: Any, facts: Sequence[Fact], questions: Mapping[str, str]) -> dict[str, bool]:
    """Whether greedy decoding answers a fact's question with exactly one of its right objects, and then stops."""
    from experiments.common import training  # slow to import

    asked = [
        (fact.id, question(questions[fact.relation], fact.subject), completion(answer))
        for fact in facts
        for answer in fact.answers
    ]
    examples = [training.completion(tokenizer, prompt, answer) for _, prompt, answer in asked]
    right = {fact.id: False for fact in facts}
    for (id, _, _), match in zip(asked, training.exact_matches(model, examples), strict=True):
        right[id] |= match
    return right


def clozes(model: Any, tokenizer: Any, data: FactData, templates: Mapping[str, str]) -> dict[str, Placed]:
    """Where the object asked for stands in its cloze sentence among the relation's objects, other right ones left out.

    An object is as probable as all of its tokens after the sentence up to it. Facts of relations without template, or
    with one that puts the object before the subject, are left out.
    """
    from experiments.common import training  # slow to import

    asked: list[tuple[str, bool]] = []
    examples: list[tuple[list[int], int]] = []
    for relation in data.relations:
        facts = data.of_relation(relation)
        objects = list(dict.fromkeys(fact.answers[0] for fact in facts))
        for fact in facts:
            prompt = cloze(templates[relation], fact.subject) if relation in templates else None
            if prompt is None:
                continue
            for name in objects:
                if name == fact.answers[0] or name not in fact.answers:
                    asked.append((fact.id, name == fact.answers[0]))
                    examples.append(training.completion(tokenizer, prompt, completion(name), end=False))
    scores: dict[str, list[tuple[bool, float]]] = {}
    for (id, right), score in zip(asked, training.log_probabilities(model, examples), strict=True):
        scores.setdefault(id, []).append((right, score))
    return {id: _placed(found) for id, found in scores.items()}


def _placed(scores: Sequence[tuple[bool, float]]) -> Placed:
    right = next(score for is_right, score in scores if is_right)
    top = max(score for _, score in scores)
    total = sum(math.exp(score - top) for _, score in scores)
    rank = 1 + sum(score >= right for is_right, score in scores if not is_right)
    return Placed(rank, math.exp(right - top) / total)


def chance(facts: Sequence[Fact]) -> float:
    """The share that the best constant answer of each relation gets right."""
    right = 0
    for relation in {fact.relation for fact in facts}:
        given = Counter(answer for fact in facts if fact.relation == relation for answer in fact.answers)
        right += given.most_common(1)[0][1]
    return right / len(facts)


def accuracy_report(
    data: FactData, halves: Mapping[str, str], right: Mapping[str, bool], placed: Mapping[str, Placed]
) -> dict[str, Any]:
    """Shares over both halves and by relation, and each fact's answer; the content of ``accuracy.json``."""
    report: dict[str, Any] = {}
    for half, name in ((FINETUNE, "finetuned_half"), (QUERY, "other_half")):
        facts = of_half(data, halves, half)
        report[name] = {
            **_shares(facts, right, placed),
            "by_relation": {
                relation: _shares([fact for fact in facts if fact.relation == relation], right, placed)
                for relation in data.relations
            },
        }
    without = [id for id in data.facts if id not in placed]
    return {**report, "facts_without_cloze": without, "answered": {id: right[id] for id in data.facts}}


def _shares(facts: Sequence[Fact], right: Mapping[str, bool], placed: Mapping[str, Placed]) -> dict[str, Any]:
    places = [placed[fact.id] for fact in facts if fact.id in placed]
    return {
        "facts": len(facts),
        "answered": mean(right[fact.id] for fact in facts),
        "chance": chance(facts),
        "cloze_first": mean(place.rank == 1 for place in places) if places else None,
        "cloze_mrr": mean(1 / place.rank for place in places) if places else None,
        "cloze_probability": mean(place.probability for place in places) if places else None,
    }


def accuracy_tables(report: Mapping[str, Any]) -> list[Table]:
    """One table over both halves, one by relation for the half that is only asked."""
    halves = {"fine-tuned on": report["finetuned_half"], "only asked": report["other_half"]}
    return [
        _table("half", halves, "What the models know"),
        _table("relation", report["other_half"]["by_relation"], "The half that is only asked, by relation"),
    ]


def _table(first: str, rows: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    names = ("facts", "answered", "chance", "cloze_first", "cloze_mrr", "cloze_probability")
    columns = (first, "facts", "answered", "best constant answer", "cloze: first", "cloze: MRR", "cloze: probability")
    values = [(name, *(row[field] for field in names)) for name, row in rows.items()]
    return Table(columns, values, title, dict.fromkeys(columns[2:], ".3f"))
