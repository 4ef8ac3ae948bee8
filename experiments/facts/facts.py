"""Facts, and the sentences that state them.

A fact is a subject and a relation with all objects that are right for them. A sentence is unique by its text and can
state several facts. Nothing leaves a data set unseen: what is left out, and what is odd, is counted in `report`, and
named in `named` where a name helps to find it.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from msif.errors import MsifError


@dataclass(frozen=True)
class Fact:
    """
    Attributes:
        id: the relation and the subject's id, such as "P19:Q1886736".
        answers: every object of this subject and relation; the first is the one asked for.
    """

    id: str
    relation: str
    subject: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Sentence:
    """
    Attributes:
        facts: ids of all facts that it states, each once.
        targets: how it spells the object of each of these facts.
    """

    id: str
    text: str
    facts: tuple[str, ...]
    targets: tuple[str, ...]

    def only(self, facts: Collection[str]) -> Sentence:
        """The same sentence, as a statement of these facts alone."""
        pairs = [(fact, target) for fact, target in zip(self.facts, self.targets, strict=True) if fact in facts]
        return replace(self, facts=tuple(fact for fact, _ in pairs), targets=tuple(target for _, target in pairs))


@dataclass(frozen=True)
class FactData:
    """Sentences in a fixed order and the facts they state; each fact has a sentence, and each sentence a fact.

    Attributes:
        sentences: of different texts; the position is the row of the corpus.
        facts: by their ids.
        report: how many there are of everything odd, and how many each selection left out.
        named: ids or names behind some of these counts.
    """

    sentences: list[Sentence]
    facts: dict[str, Fact]
    report: dict[str, int]
    named: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def _sources(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {id: [] for id in self.facts}
        for row, sentence in enumerate(self.sentences):
            for fact in sentence.facts:
                rows[fact].append(row)
        return rows

    def sources(self, fact_id: str) -> list[int]:
        """The rows of the sentences that state a fact."""
        return list(self._sources[fact_id])

    @property
    def relations(self) -> list[str]:
        """In the order of their first fact."""
        return list(dict.fromkeys(fact.relation for fact in self.facts.values()))

    def of_relation(self, relation: str) -> list[Fact]:
        return [fact for fact in self.facts.values() if fact.relation == relation]

    def restricted(
        self,
        relations: Sequence[str] | None = None,
        facts_per_relation: int | None = None,
        sentences_per_fact: int | None = None,
        seed: int = 0,
    ) -> FactData:
        """A smaller data set, drawn by the seed; None sets no limit.

        A fact can keep more than ``sentences_per_fact`` sentences where another fact has drawn one that states both.

        Raises:
            MsifError: no fact has one of the relations.
        """
        relations = self.relations if relations is None else list(dict.fromkeys(relations))
        if missing := [relation for relation in relations if not self.of_relation(relation)]:
            raise MsifError(f"there is no fact of {', '.join(missing)}: choose among {', '.join(self.relations)}.")
        facts: set[str] = set()
        for relation in relations:
            ids = [fact.id for fact in self.of_relation(relation)]
            facts.update(_drawn(ids, facts_per_relation, f"{seed}:{relation}"))
        rows: set[int] = set()
        for id in facts:
            rows.update(_drawn(self.sources(id), sentences_per_fact, f"{seed}:{id}"))
        return self.kept(facts, rows, "for size")

    def kept(self, facts: Collection[str], rows: Collection[int], why: str) -> FactData:
        """These facts, and those of these sentences that state one of them.

        Args:
            why: ends the names of the counts of what is left out, such as "for size".
        """
        chosen = [(self.sentences[row], self.sentences[row].only(facts)) for row in sorted(rows)]
        sentences = [sentence for _, sentence in chosen if sentence.facts]
        stated = {fact for sentence in sentences for fact in sentence.facts}
        mentions = sum(len(whole.facts) - len(part.facts) for whole, part in chosen if part.facts)
        counts = {
            f"facts left out {why}": len(self.facts) - len(stated),
            f"sentences left out {why}": len(self.sentences) - len(sentences),
            f"statements of left facts in kept sentences, {why}": mentions,
        }
        kept_facts = {id: fact for id, fact in self.facts.items() if id in stated}
        return FactData(sentences, kept_facts, add_counts(self.report, counts), self.named)


def add_counts(report: Mapping[str, int], counts: Mapping[str, int]) -> dict[str, int]:
    """A report with more counts; those of the same name are summed."""
    return {**report, **{name: report.get(name, 0) + count for name, count in counts.items()}}


def _drawn(items: Sequence, count: int | None, seed: str) -> list:
    """Some of the items. One that is drawn by a count is drawn by every larger one, too."""
    if count is None:
        return list(items)
    return random.Random(seed).sample(list(items), len(items))[:count]
