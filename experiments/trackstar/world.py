"""The model, its sentences, and the facts that it is asked, in several wordings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from experiments.common.training import completion, log_probabilities
from experiments.facts.questions import cloze, load_clozes, load_questions
from experiments.facts.reading import Stated, read_facts
from msif.data.batching import batches_of
from msif.data.documents import Batch
from msif.data.queries import Query, encode_queries
from msif.errors import MsifError
from msif.stage import Stage

WORDINGS = ("cloze", "question", "question and answer")


@dataclass(frozen=True)
class Known:
    """A fact, and what the model says of it.

    Attributes:
        said: the object of its relation that the model finds likeliest after the cloze.
    """

    fact: Stated
    said: str

    @property
    def right(self) -> bool:
        return self.said in self.fact.answers


@dataclass
class World:
    """A folder that ``experiments.fact_tracing.pair`` made; its pre-trained model is asked.

    Attributes:
        model: another folder of a model, trained on the same sentences; None is the pair's.
    """

    folder: Path
    templates: Path
    model: Path | None = None

    @cached_property
    def stage(self) -> Stage:
        """The model with its sentences."""
        return self._stage()

    @cached_property
    def maps(self) -> Stage:
        """The same, of which the linear maps are tracked, for methods without an index."""
        return self._stage("maps")

    def _stage(self, modules: str | None = None) -> Stage:
        folder = str(self.model or self.folder / "pretrained")
        return Stage(folder, list(self.texts), dtype="float32", modules=modules)

    @cached_property
    def _read(self) -> tuple[list[str], list[Stated]]:
        return read_facts(self.folder)

    @property
    def texts(self) -> Sequence[str]:
        return self._read[0]

    @cached_property
    def known(self) -> list[Known]:
        """All facts whose template puts the object last, with what the model says."""
        clozes = load_clozes(self.templates / "lama_relations.jsonl")
        objects: dict[str, list[str]] = {}
        for fact in self._read[1]:
            objects.setdefault(fact.relation, []).append(fact.answers[0])
        loaded, found, examples, places = self.stage.loaded, [], [], []
        for fact in self._read[1]:
            prompt = cloze(clozes[fact.relation], fact.subject) if fact.relation in clozes else None
            if prompt is None or not fact.sources:
                continue
            names = list(dict.fromkeys([fact.answers[0], *objects[fact.relation]]))
            places.append((fact, names, len(examples)))
            examples += [completion(loaded.tokenizer, prompt, f" {name}", end=False) for name in names]
        scores = np.array(log_probabilities(loaded.model, examples))
        for fact, names, start in places:
            found.append(Known(fact, names[int(scores[start : start + len(names)].argmax())]))
        return found

    def chosen(self, count: int, seed: int) -> list[Known]:
        """As many facts that the model says rightly as wrongly, at random; more of one kind where the other is short.

        Raises:
            MsifError: there are fewer facts.
        """
        if len(self.known) < count:
            raise MsifError(f"{len(self.known)} facts can be asked for --facts {count}: give a smaller number.")
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.known))
        kinds = [[i for i in order if self.known[i].right == right] for right in (True, False)]
        half = [kind[: count // 2] for kind in kinds]
        rest = [i for kind in kinds for i in kind[count // 2 :]]
        picked = [*half[0], *half[1]]
        return [self.known[i] for i in sorted([*picked, *rest[: count - len(picked)]])]

    def prompts(self, facts: Sequence[Known], wording: str, targets: Sequence[str] | None = None) -> list[Query]:
        """Each fact's query: what is asked, and the right object or another target."""
        clozes = load_clozes(self.templates / "lama_relations.jsonl")
        questions = load_questions(self.templates / "lama_questions.jsonl")
        queries = []
        for number, known in enumerate(facts):
            fact, target = known.fact, known.fact.answers[0] if targets is None else targets[number]
            asked = questions[fact.relation].replace("[X]", fact.subject)
            prompt = {
                "cloze": cloze(clozes[fact.relation], fact.subject),
                "question": asked,
                "question and answer": f"Question: {asked}\nAnswer:",
            }[wording]
            assert prompt is not None
            queries.append(Query(fact.id, prompt, f" {target}"))
        return queries

    def batches(self, queries: Sequence[Query], alone: bool = False) -> list[Batch]:
        """Queries as batches, numbered from 0; each a batch of its own where that is asked for, in their order."""
        documents = encode_queries(queries, self.stage.loaded.tokenizer, max_length=self.stage.max_length)
        if not alone:
            return batches_of(documents, self.stage.batch_tokens)
        return [batches_of([document], self.stage.batch_tokens)[0] for document in documents]

    def sentences(self, rows: Sequence[int]) -> Mapping[int, Batch]:
        """Row -> a batch of this sentence alone."""
        wanted = replace(self.stage.batches, indices=sorted(set(rows)), batch_tokens=1)
        return {int(batch.indices[0]): batch for batch in wanted}

    def relevant(self, known: Known) -> np.ndarray:
        """Which sentences state a fact, bool, (N,)."""
        return np.isin(np.arange(len(self.texts)), known.fact.sources)


CLASSES = ("states the fact", "subject and object", "subject only", "object only", "part of a name", "neither")


def classify(text: str, row: int, known: Known) -> str:
    """How a sentence is related to a fact, by the names in it."""
    fact = known.fact
    if row in fact.sources:
        return CLASSES[0]
    subject, target = _holds(text, fact.subject), any(_holds(text, name) for name in fact.answers)
    if subject or target:
        return CLASSES[1] if subject and target else CLASSES[2] if subject else CLASSES[3]
    parts = {word for name in (fact.subject, *fact.answers) for word in re.findall(r"\w{4,}", name)}
    return CLASSES[4] if any(_holds(text, word) for word in parts) else CLASSES[5]


def _holds(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None
