"""The demo's metrics and report, on results made by hand."""

import json
from io import StringIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from experiments.demo import demo, report
from experiments.demo.ranks import Summary, at_random, first_source, mean, read_rankings, summarise
from experiments.demo.world import WorldSize, build_world, write_world
from msif.json_text import json_lines

SMALL = WorldSize(people=6, towns=4, companies=4, wordings=3, distractors=10)


def test_ranks_count_from_one_and_a_lost_source_counts_as_none():
    assert first_source(["a", "b", "c"], {"c", "b"}) == 2
    assert first_source(["a"], {"z"}) is None
    assert summarise([1, 10, 11, None]) == Summary(0.25, 0.5, pytest.approx((1 + 1 / 10 + 1 / 11) / 4))
    assert mean([Summary(0, 0, 0), Summary(1, 1, 1)]) == Summary(0.5, 0.5, 0.5)


def test_a_random_order_by_enumeration():
    from itertools import combinations

    first = [min(places) + 1 for places in combinations(range(13), 3)]
    assert at_random(13, 3) == Summary(*(pytest.approx(value) for value in vars(summarise(first)).values()))
    assert at_random(5, 0) == Summary(0, 0, 0)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A small world, the questions asked, and made-up results: the sources first, then everything else."""
    world = build_world(0, SMALL)
    (tmp_path / "world").mkdir()
    (tmp_path / "influence").mkdir()
    write_world(world, tmp_path / "world")
    demo.ask(tmp_path / "world", tmp_path / "questions.jsonl", 1)
    asked = list(json_lines(tmp_path / "questions.jsonl"))
    facts = {f"q{fact.id[1:]}": fact for fact in world.facts}
    for name in demo.METHODS:
        folder = tmp_path / "influence" / name
        folder.mkdir()
        rows, shown = [], []
        for number, query in enumerate(asked):
            sources = [passage.id for passage in world.sources(facts[query["id"]].id)]
            order = sources + [passage.id for passage in world.passages if passage.id not in sources]
            rows += [{"query_id": query["id"], "candidate_id": id, "rank": r} for r, id in enumerate(order, 1)]
            answer = facts[query["id"]].completion if number else " nonsense"
            entry = {"query_id": query["id"], "completion": answer, "kind": "proponent", "rank": 1, "score": 2.0}
            shown.append({**entry, "candidate_id": order[0], "text": "It is so."})
        pq.write_table(pa.Table.from_pylist(rows), folder / "scores.parquet")
        (folder / "top.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shown))
    monkeypatch.setattr(report, "by_embedding", lambda corpus, right, count: {q.id: ["nothing"] for q in right})
    return tmp_path


def test_questions_are_asked_without_answers(results):
    asked = list(json_lines(results / "questions.jsonl"))
    facts = {row["id"]: row for row in json_lines(results / "world" / "facts.jsonl")}
    assert all(set(query) == {"id", "prompt"} for query in asked)
    chosen = [facts[f"f{query['id'][1:]}"] for query in asked]
    assert {fact["half"] for fact in chosen} == {"query"}
    assert len(chosen) == len({fact["relation"] for fact in chosen}) == 5


def test_the_report_counts_right_answers_only(results):
    out = StringIO()
    titles = {name: title for name, (title, _) in demo.METHODS.items()}
    report.report(
        Console(file=out, width=120), results / "world", results / "questions.jsonl", results / "influence", titles
    )
    text = out.getvalue()
    assert "4 of 5 questions, those that the model answers right" in text
    assert text.count("wrong, it is") == 1 and text.count("●  1") == 5
    rows = {line.split("  ")[0]: line.split()[-3:] for line in text.splitlines()}
    assert rows["multi-stage influence"] == ["100%", "100%", "1.00"]
    assert rows["sentence embeddings alone"] == ["0%", "0%", "0.00"]
    (table,) = json.loads((results / "demo.json").read_text())["tables"]
    assert table["rows"][0] == {"a true source ranks": "multi-stage influence", "first": 1, "within ten": 1, "MRR": 1}
    assert "| multi-stage influence " in (results / "demo.md").read_text()


def test_a_command_that_fails_ends_the_demo_with_its_status():
    steps = demo.Steps(Console(file=StringIO()), {})
    with pytest.raises(SystemExit) as stopped:
        steps.run("A step", ["-c", "raise SystemExit(2)"])
    assert stopped.value.code == 2 and not steps.seconds


def test_rankings_are_read_in_order_of_rank(tmp_path):
    rows = [{"query_id": "q", "candidate_id": id, "rank": rank} for id, rank in (("b", 2), ("a", 1), ("c", 3))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores.parquet")
    assert read_rankings(tmp_path / "scores.parquet") == {"q": ["a", "b", "c"]}
