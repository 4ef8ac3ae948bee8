"""Which facts a small model has a chance to learn: those stated as a question will ask for them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

from experiments.facts.facts import Fact, FactData, Sentence, add_counts


@dataclass(frozen=True)
class Plain:
    """What a plain sentence is.

    Attributes:
        words: of the whole sentence, at most.
        lead: words before the subject, at most.
    """

    words: int
    lead: int

    def states(self, sentence: Sentence, fact: Fact) -> bool:
        """Whether the sentence names the subject as questions do, and the object asked for after it.

        A model that reads from left to right learns to continue the subject with what follows it; an object that
        stands before its subject teaches the opposite direction, and words before the subject are a clue to the object
        that no question gives.
        """
        start = sentence.text.find(fact.subject)
        if start < 0 or len(sentence.text.split()) > self.words or len(sentence.text[:start].split()) > self.lead:
            return False
        return sentence.text.find(fact.answers[0], start + len(fact.subject)) >= 0


def plainly_stated(data: FactData, plain: Plain, minimum: int) -> FactData:
    """The facts that ``minimum`` plain sentences state, and all plain sentences of theirs.

    What goes is counted in the report. A sentence goes whole, so that none is left which states a fact unsaid.
    """
    rows: set[int] = set()
    facts: set[str] = set()
    for fact in data.facts.values():
        stating = [row for row in data.sources(fact.id) if plain.states(data.sentences[row], fact)]
        if len(stating) >= minimum > 0:
            facts.add(fact.id)
            rows.update(stating)
    kept = data.kept(facts, rows, "by the selection of plain statements")
    return _naming(kept, "relations without plainly stated facts", set(data.relations) - set(kept.relations))


def balanced(data: FactData, least: int, most: int, seed: int) -> FactData:
    """The facts whose object is asked for by at least so many facts of all, and by at most so many of its relation.

    An object that is an answer once can be no answer of both halves; one that most facts share is right by habit. The
    facts of too common objects are drawn by the seed.
    """
    uses = Counter(fact.answers[0] for fact in data.facts.values())
    shared: dict[tuple[str, str], list[str]] = {}
    for fact in data.facts.values():
        if uses[fact.answers[0]] >= least:
            shared.setdefault((fact.relation, fact.answers[0]), []).append(fact.id)
    chosen = {
        id
        for (_, answer), ids in shared.items()
        for id in random.Random(f"{seed}:{answer}").sample(ids, len(ids))[:most]
    }
    return data.kept(chosen, range(len(data.sentences)), "for the balance of answers")


def divisible(data: FactData) -> FactData:
    """The facts of relations that have two or more, which can be halved; the others are named."""
    counts = Counter(fact.relation for fact in data.facts.values())
    facts = {id for id, fact in data.facts.items() if counts[fact.relation] > 1}
    kept = data.kept(facts, range(len(data.sentences)), "for being alone in their relation")
    return _naming(kept, "relations with a single fact", {name for name, count in counts.items() if count == 1})


def with_question(data: FactData, questions: Collection[str]) -> FactData:
    """The facts of relations that a question is known for, and the sentences that state them; the others are named."""
    facts = {id for id, fact in data.facts.items() if fact.relation in questions}
    kept = data.kept(facts, range(len(data.sentences)), "for want of a question template")
    return _naming(kept, "relations without a question template", set(data.relations) - set(questions))


def _naming(data: FactData, what: str, names: Collection[str]) -> FactData:
    report = add_counts(data.report, {what: len(names)})
    return replace(data, report=report, named={**data.named, what: tuple(sorted(names))})
