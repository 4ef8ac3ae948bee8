"""What is this the name of? A task whose every answer stands in a few sentences of pre-training, and nowhere else.

Classes are objects of facts (a language, a label, a maker); a text is a subject, alone. The classifier is fine-tuned on
some subjects of each class and asked others, of which only pre-training sentences tell.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from experiments.common.training import ModelSize, Schedule
from experiments.facts.facts import Fact, FactData
from experiments.facts.halves import FINETUNE, QUERY, halved, of_half
from experiments.facts.selection import Plain, balanced, plainly_stated
from experiments.replaced_head.setting import Labelled, Parts
from experiments.retraining.settings import Recipe


@dataclass(frozen=True)
class SubjectTask:
    """
    Attributes:
        least, most: facts of a class.
        sentences: of a fact, at most; plain ones (``facts.selection``),
        words: of so many words at most,
        lead: so many of them before the subject.
        stated: so many plain sentences must state a fact.
    """

    relations: tuple[str, ...] = (
        *("P106", "P413", "P39", "P1303", "P264", "P136"),
        *("P103", "P407", "P127", "P176", "P31"),
    )
    least: int = 8
    most: int = 24
    sentences: int = 4
    words: int = 24
    lead: int = 3
    stated: int = 2

    def parts(self, data: FactData, seed: int) -> Parts:
        """Sentences on subjects of one class each; half of each class's subjects to fine-tune on, and the others."""
        plain = plainly_stated(data.restricted(self.relations), Plain(self.words, self.lead), self.stated)
        facts = balanced(_of_one_class(plain), self.least, self.most, seed).restricted(None, None, self.sentences, seed)
        of_class: dict[str, list[str]] = defaultdict(list)
        for fact in facts.facts.values():
            of_class[fact.answers[0]].append(fact.id)
        classes, halves = tuple(sorted(of_class)), halved(of_class, seed)
        finetuning, held_out = (
            sorted(of_half(facts, halves, half), key=lambda fact: fact.answers[0]) for half in (FINETUNE, QUERY)
        )

        def labelled(fact: Fact) -> Labelled:
            return fact.subject, classes.index(fact.answers[0])

        documents = [(s.text, labelled(facts.facts[s.facts[0]])[1]) for s in facts.sentences]
        sources = [facts.sources(fact.id) for fact in held_out]
        asked = [labelled(fact) for fact in held_out]
        return Parts(classes, documents, [labelled(fact) for fact in finetuning], asked, sources, facts)


# A gentle fine-tuning: at ten times the learning rate fewer answers are right, and influence foretells less.
RECIPE = Recipe(
    vocabulary=2000,
    size=ModelSize(layers=1, hidden=128, heads=2, positions=128),
    pretraining=Schedule(epochs=16, learning_rate=3e-3, batch_size=32),
    finetuning=Schedule(epochs=30, learning_rate=3e-4, batch_size=16),
)


def _of_one_class(data: FactData) -> FactData:
    """The facts whose subject is asked about by no other, and the sentences that state one class."""
    by_subject: dict[str, set[str]] = defaultdict(set)
    for fact in data.facts.values():
        by_subject[fact.subject].add(fact.id)
    facts = {id for id, fact in data.facts.items() if len(by_subject[fact.subject]) == 1}
    answers = [{data.facts[id].answers[0] for id in sentence.facts} for sentence in data.sentences]
    rows = [row for row, stated in enumerate(answers) if len(stated) == 1]
    return data.kept(facts, rows, "for telling of two classes")
