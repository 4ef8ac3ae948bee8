"""Which facts are fine-tuned on and which are only asked, and the files that say so."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.facts.facts import Fact, FactData
from experiments.facts.questions import completion, question
from msif.atomic import write_json, write_json_lines
from msif.errors import MsifError
from msif.reporting.tables import Table, write_results

FINETUNE, QUERY = "finetune", "query"


def split(data: FactData, seed: int) -> dict[str, str]:
    """Fact id -> half, drawn within each relation; of an odd number the spare one is asked.

    Raises:
        MsifError: a relation has fewer than two facts.
    """
    groups = {relation: [fact.id for fact in data.of_relation(relation)] for relation in data.relations}
    for relation, ids in groups.items():
        if len(ids) < 2:
            raise MsifError(f"{relation} has a single fact, which makes no two halves: leave it out of --relations.")
    return halved(groups, seed)


def halved(groups: Mapping[str, Sequence[str]], seed: int) -> dict[str, str]:
    """Fact id -> half, drawn within each group; of an odd number the spare one is asked."""
    halves: dict[str, str] = {}
    for name, ids in groups.items():
        tuned = set(random.Random(f"{seed}:{name}:half").sample(ids, len(ids) // 2))
        halves.update({id: FINETUNE if id in tuned else QUERY for id in ids})
    return halves


def of_half(data: FactData, halves: Mapping[str, str], half: str) -> list[Fact]:
    return [fact for fact in data.facts.values() if halves[fact.id] == half]


def write_data(data: FactData, halves: Mapping[str, str], questions: Mapping[str, str], folder: Path) -> None:
    """``corpus``, ``finetune``, ``queries`` and ``facts`` as JSON Lines, and the data report."""
    corpus = [
        {"id": sentence.id, "text": sentence.text, "facts": list(sentence.facts), "targets": list(sentence.targets)}
        for sentence in data.sentences
    ]
    write_json_lines(folder / "corpus.jsonl", corpus)
    for half, name in ((FINETUNE, "finetune"), (QUERY, "queries")):
        asked = [
            {
                "id": fact.id,
                "prompt": question(questions[fact.relation], fact.subject),
                "completion": completion(fact.answers[0]),
            }
            for fact in of_half(data, halves, half)
        ]
        write_json_lines(folder / f"{name}.jsonl", asked)
    facts = [
        {
            "id": fact.id,
            "relation": fact.relation,
            "subject": fact.subject,
            "answers": list(fact.answers),
            "half": halves[fact.id],
            "sources": data.sources(fact.id),
        }
        for fact in data.facts.values()
    ]
    write_json_lines(folder / "facts.jsonl", facts)
    write_json(folder / "report.json", data.report)
    write_json(folder / "named.json", data.named)
    write_results(folder, "tables", [report_table(data), relation_table(data, halves)], {})


def report_table(data: FactData) -> Table:
    """Everything that was counted on the way from the files to this data set."""
    rows = [*data.report.items(), ("kept sentences", len(data.sentences)), ("kept facts", len(data.facts))]
    return Table(("what", "number"), rows, "Data report")


def relation_table(data: FactData, halves: Mapping[str, str]) -> Table:
    """How much there is of each relation, and how much of it the commonest answer gets right."""
    rows = []
    for relation in data.relations:
        facts = data.of_relation(relation)
        sources = sum(len(data.sources(fact.id)) for fact in facts) / len(facts)
        answers = Counter(fact.answers[0] for fact in facts)
        tuned = sum(halves[fact.id] == FINETUNE for fact in facts)
        rows.append((relation, tuned, len(facts) - tuned, sources, len(answers), answers.most_common(1)[0][0]))
    columns = ("relation", "fine-tuned on", "asked", "sentences a fact", "answers", "commonest answer")
    return Table(columns, rows, "Facts by relation", {"sentences a fact": ".1f"})
