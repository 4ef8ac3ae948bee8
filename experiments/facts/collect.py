"""From single statements, as files list them, to unique sentences and facts."""

from __future__ import annotations

from collections import Counter

from experiments.facts.facts import Fact, FactData, Sentence


class Collector:
    """Takes facts and evidence for them one by one; sentences and facts keep the order in which they were seen."""

    def __init__(self) -> None:
        self._subjects: dict[str, tuple[str, str]] = {}  # fact id -> relation, subject
        self._answers: dict[str, dict[str, None]] = {}  # fact id -> its objects, a set that keeps its order
        self._stated: dict[str, dict[str, str]] = {}  # text -> fact id -> spelling of the object
        self._counts: Counter[str] = Counter()
        self._missing: dict[str, None] = {}

    def fact(self, relation: str, subject_id: str, subject: str, answer: str) -> str:
        """Notes that the answer is right for this relation and subject; returns the fact's id."""
        id = f"{relation}:{subject_id}"
        self._counts["facts listed (one object each)"] += 1
        self._subjects.setdefault(id, (relation, subject))
        self._answers.setdefault(id, {})[answer] = None
        return id

    def evidence(self, fact: str, text: str, target: str) -> None:
        """Notes that a sentence states a fact, whose object it spells like this.

        One without the object in it is no statement of the fact: it is counted, and its fact is named.
        """
        self._counts["evidence listed"] += 1
        text = " ".join(text.split())
        target = " ".join(target.split())
        if not target or target not in text:
            self._counts["evidence without its object in the text, left out"] += 1
            self._missing[fact] = None
            return
        facts = self._stated.setdefault(text, {})
        if fact in facts:
            self._counts["evidence repeated for the same fact"] += 1
        facts.setdefault(fact, target)

    def data(self, **counts: int) -> FactData:
        """All that was noted. Facts without any sentence are named, and are not among the facts."""
        sentences = [
            Sentence(f"s{row:06d}", text, tuple(facts), tuple(facts.values()))
            for row, (text, facts) in enumerate(self._stated.items())
        ]
        stated = {fact for sentence in sentences for fact in sentence.facts}
        facts = {id: Fact(id, *names, tuple(self._answers[id])) for id, names in self._subjects.items() if id in stated}
        without = tuple(id for id in self._subjects if id not in stated)
        several = tuple(id for id, fact in facts.items() if len(fact.answers) > 1)
        report = {
            **self._counts,
            **counts,
            "facts without a source, left out": len(without),
            "facts with several right objects": len(several),
            "sentences that state several facts": sum(len(sentence.facts) > 1 for sentence in sentences),
            "unique sentences": len(sentences),
            "facts with a source (one a relation and subject)": len(facts),
        }
        named = {
            "facts without a source": without,
            "facts with evidence that lacks the object": tuple(self._missing),
            "facts with several right objects": several,
        }
        return FactData(sentences, facts, report, named)
