"""A small fictional world, written down as passages: what `make demo` pre-trains and asks about.

Every passage that states a fact states exactly one, so the true sources of an answer are known. Half of the facts of
each relation become fine-tuning questions; the other half are only ever asked, so that a right answer to one of those
can have been learnt in pre-training alone.

In every wording the subject comes before the answer: a language model learns "A's birthplace is B" from text that reads
in that order, and hardly from the reverse.
"""

from __future__ import annotations

import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.demo import words
from msif.atomic import write_json_lines


@dataclass(frozen=True)
class Fact:
    """One thing that is true in the world: the answer that a relation gives for a subject."""

    id: str
    relation: str
    subject: str
    answer: str
    half: str  # "finetune": its question is trained on; "query": its question is only asked

    @property
    def prompt(self) -> str:
        return f"Question: {words.QUESTIONS[self.relation].format(s=self.subject)}\nAnswer:"

    @property
    def completion(self) -> str:
        return f" {self.answer}"


@dataclass(frozen=True)
class Passage:
    """One pre-training document. `facts` holds the identifier of the fact that it states, or nothing."""

    id: str
    text: str
    facts: tuple[str, ...]


@dataclass(frozen=True)
class WorldSize:
    """How much there is of everything. Towns and companies are also the answers that a guess chooses from."""

    people: int = 36
    towns: int = 24
    companies: int = 24
    wordings: int = 6  # passages a fact, each worded differently
    distractors: int = 150


@dataclass(frozen=True)
class World:
    facts: tuple[Fact, ...]
    passages: tuple[Passage, ...]

    def half(self, name: str) -> list[Fact]:
        return [fact for fact in self.facts if fact.half == name]

    def sources(self, fact_id: str) -> list[Passage]:
        return [passage for passage in self.passages if fact_id in passage.facts]

    def statements(self, text: str) -> list[str]:
        """Every fact whose subject and answer are both mentioned in `text`."""
        return [fact.id for fact in self.facts if mentions(text, fact.subject) and mentions(text, fact.answer)]


def mentions(text: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", text) is not None


def build_world(seed: int = 0, size: WorldSize | None = None) -> World:
    """The world of this seed: the same seed and size give the same world, on any machine."""
    size = size or WorldSize()
    rng = random.Random(seed)
    towns, people, companies = _entities(rng, size)
    facts = _facts(rng, towns, people, companies)
    texts = [(text, (fact.id,)) for fact in facts for text in _wordings(rng, fact, size.wordings)]
    texts += [(text, ()) for text in _distractors(rng, size.distractors, facts, towns, people, companies)]
    rng.shuffle(texts)
    passages = tuple(Passage(f"p{number:04d}", text, stated) for number, (text, stated) in enumerate(texts))
    return World(tuple(facts), passages)


def write_world(world: World, folder: str | Path) -> None:
    """Write `corpus.jsonl`, `finetune.jsonl`, `queries.jsonl` and `facts.jsonl` into an existing folder."""
    folder = Path(folder)
    passages = [{"id": p.id, "text": p.text, "facts": list(p.facts)} for p in world.passages]
    write_json_lines(folder / "corpus.jsonl", passages)
    for name, half in (("finetune", "finetune"), ("queries", "query")):
        rows = [
            {"id": f"q{fact.id[1:]}", "prompt": fact.prompt, "completion": fact.completion, "fact": fact.id}
            for fact in world.half(half)
        ]
        write_json_lines(folder / f"{name}.jsonl", rows)
    sources = {fact.id: [passage.id for passage in world.sources(fact.id)] for fact in world.facts}
    write_json_lines(folder / "facts.jsonl", [{**asdict(fact), "sources": sources[fact.id]} for fact in world.facts])


def _entities(rng: random.Random, size: WorldSize) -> tuple[list[str], list[str], list[str]]:
    """Towns, people and companies. No invented word is used twice, so each name is known by its first word."""
    taken: set[str] = set()

    def invent(count: int, starts: tuple[str, ...], ends: tuple[str, ...]) -> list[str]:
        choices = [start + end for start in starts for end in ends]
        rng.shuffle(choices)
        names = [name for name in choices if name not in taken][:count]
        if len(names) < count:
            raise ValueError(f"there are only {len(names)} names for {count} entities: ask for a smaller world")
        taken.update(names)
        return names

    towns = invent(size.towns, words.TOWN_STARTS, words.TOWN_ENDS)
    first = invent(size.people, words.FIRST_STARTS, words.FIRST_ENDS)
    last = invent(size.people, words.LAST_STARTS, words.LAST_ENDS)
    marks = invent(size.companies, words.COMPANY_STARTS, words.COMPANY_ENDS)
    companies = [f"{mark} {words.COMPANY_KINDS[i % len(words.COMPANY_KINDS)]}" for i, mark in enumerate(marks)]
    return towns, [f"{a} {b}" for a, b in zip(first, last, strict=True)], companies


def _spread(rng: random.Random, answers: list[str], count: int) -> list[str]:
    """`count` answers, each used about equally often, in random order."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(answers, len(answers))
    return rng.sample(drawn[:count], count)


def _facts(rng: random.Random, towns: list[str], people: list[str], companies: list[str]) -> list[Fact]:
    table = {
        "birthplace": (people, towns),
        "employer": (people, companies),
        "profession": (people, list(words.PROFESSIONS)),
        "headquarters": (companies, towns),
        "product": (towns, list(words.PRODUCTS)),
    }
    facts: list[Fact] = []
    for relation, (subjects, answers) in table.items():
        asked = set(rng.sample(range(len(subjects)), len(subjects) // 2))
        for i, (subject, answer) in enumerate(zip(subjects, _spread(rng, answers, len(subjects)), strict=True)):
            half = "query" if i in asked else "finetune"
            facts.append(Fact(f"f{len(facts):03d}", relation, subject, answer, half))
    return facts


def _wordings(rng: random.Random, fact: Fact, count: int) -> list[str]:
    wordings = words.WORDINGS[fact.relation]
    if count > len(wordings):
        raise ValueError(f"there are {len(wordings)} wordings of {fact.relation}, not {count}")
    return [_fill(rng, wording, s=fact.subject, a=fact.answer) for wording in rng.sample(wordings, count)]


def _fill(rng: random.Random, wording: str, **names: str) -> str:
    text = wording.format(season=rng.choice(words.SEASONS), number=rng.choice(words.NUMBERS), **names)
    if rng.random() < 0.4:
        lead = rng.choice(words.LEADS)
        # A name keeps its capital in mid-sentence; an ordinary word does not.
        text = f"{lead} {text if wording.startswith('{') else text[0].lower() + text[1:]}"
    return text


def _distractors(
    rng: random.Random, count: int, facts: list[Fact], towns: list[str], people: list[str], companies: list[str]
) -> list[str]:
    """Different passages about the same names, none of which brings a subject and its answer together."""
    world = World(tuple(facts), ())
    found: dict[str, None] = {}  # a set that keeps its order
    for attempt in range(100 * count):
        if len(found) == count:
            return list(found)
        someone, other = rng.sample(people, 2)
        text = _fill(
            rng,
            words.DISTRACTORS[attempt % len(words.DISTRACTORS)],
            person=someone,
            other=other,
            town=rng.choice(towns),
            company=rng.choice(companies),
            product=rng.choice(words.PRODUCTS),
        )
        if not world.statements(text):
            found[text] = None
    raise ValueError(f"could not write {count} different distractors about so small a world")
