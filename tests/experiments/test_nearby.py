"""Which methods are compared with halves that are foretold, and what the table says of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.common.judging import Judge, random_halves
from experiments.demo.demo import ask
from experiments.demo.world import WorldSize, build_world, write_world
from experiments.nearby import __main__ as command
from experiments.nearby import sources
from experiments.nearby.methods import one_stage, two_stages
from experiments.peers import both
from experiments.retraining import methods as retraining_methods
from experiments.retraining import refitted
from experiments.retraining.families import family_table
from msif.atomic import write_json_lines
from msif.errors import MsifError
from msif.json_text import json_lines


@pytest.mark.parametrize(("listed", "method"), [(one_stage, "single-stage"), (two_stages, "multi-stage")])
def test_each_family_is_asked_without_halves_first_and_all_else_is_alike(monkeypatch, listed, method) -> None:
    built = []

    def record(name, first, last, damping, ihvp=None, **options):
        built.append((name, damping, options))

    monkeypatch.setattr(retraining_methods, "build_scorer", record)
    stage = SimpleNamespace(stage=None)
    families: dict[str, tuple] = {}
    monkeypatch.setattr(refitted, "build_scorer", record)
    monkeypatch.setattr(refitted, "EnsembleScorer", len)
    monkeypatch.setattr(refitted, "moved_stages", lambda first, last, halves: [(halves, last)] * halves.count)
    monkeypatch.setattr(refitted, "refitted", lambda stage, settings: stage)
    for near in listed():
        near.method.build(SimpleNamespace(pretrained=stage, finetuned=stage))
        if near.own_factors:  # as of the family, once for each half
            kinds = [(name, damping, options) for name, damping, options in built]
            assert kinds == [(method, *families[near.family][:2])] * near.halves.count
            built.clear()
            continue
        name, damping, options = built.pop()
        assert name == method and options.pop("halves", None) == near.halves
        if near.family not in families:
            assert near.halves is None
            families[near.family] = (damping, options, near.method.prior)
        assert families[near.family] == (damping, options, near.method.prior)
    assert len(families) >= 3
    methods = both._listed(listed, True)
    assert len({one.key for one in methods}) == len(methods) == len(listed())


def test_the_table_sets_each_against_its_family_without_halves() -> None:
    draw = np.random.default_rng(0)
    masks, truth = random_halves(draw, 40, 30), draw.normal(size=(2, 3, 30))
    judge = Judge(masks, -np.einsum("mn,sqn->msq", masks, truth))
    nears = one_stage()
    scores = {near.method.name: truth if near.halves else truth + draw.normal(size=truth.shape) for near in nears}
    table = family_table([("statements", judge, nears, scores)], ("halves", "step"), "gain", "of these")
    assert len(table.rows) == len(nears)
    for near, row in zip(nears, table.rows, strict=True):
        assert row[:2] == ["statements", near.family]
        if near.halves is None:
            assert row[2:4] == [None, None] and row[5] is None and float(row[4].split()[0]) < 0.95
        else:
            noise = f", noise {near.halves.noise:g}" * bool(near.halves.noise)
            assert row[2:4] == [near.halves.count, f"{near.halves.step:g}{noise}" + ", own factors" * near.own_factors]
            assert row[4].startswith("1.000") and row[5].startswith("+0.") and row[7] == pytest.approx(1)
        assert row[6] < 1  # without opponents


def test_sources_are_counted_of_right_answers_and_set_against_the_same_without_halves(tmp_path) -> None:
    world = build_world(0, WorldSize(people=6, towns=4, companies=4, wordings=3, distractors=10))
    (tmp_path / "world").mkdir()
    write_world(world, tmp_path / "world")
    ask(tmp_path / "world", tmp_path / "questions.jsonl", 1)
    asked = [query["id"] for query in json_lines(tmp_path / "questions.jsonl")]
    facts = {f"q{fact.id[1:]}": fact for fact in world.facts}
    place = {"": 3, "1": 2, "4": 1, "2": 1, "4:0.1": 2, "4:0:1": 3, "4:0.3:1": 1}  # of the only source that is ranked
    for name, (_, _, halves) in sources.METHODS.items():
        rows = []
        for query in asked:
            own = world.sources(facts[query].id)[0].id
            order = [f"other-{number}" for number in range(4)]
            order.insert(place[halves] - 1, own)
            rows += [{"query_id": query, "candidate_id": id, "rank": rank} for rank, id in enumerate(order, 1)]
        folder = tmp_path / "influence" / name
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "scores.parquet")
        said = [{"query_id": q, "completion": facts[q].completion if n else " nonsense"} for n, q in enumerate(asked)]
        write_json_lines(folder / "top.jsonl", said)
    seconds = list(range(len(sources.METHODS)))
    table = sources.source_table(tmp_path / "world", tmp_path / "questions.jsonl", tmp_path / "influence", seconds)
    assert table.title.startswith("4 of 5 questions")
    for number, ((title, flags, halves), row) in enumerate(zip(sources.METHODS.values(), table.rows, strict=True)):
        assert ("--halves" in flags) == bool(halves) and row[0] == title and row[5] == number
        found = 1 / place[halves]
        assert row[1] == (halves or None) and row[2] == (found == 1) and float(row[3].split()[0]) == round(found, 3)
        assert row[4] is None if not halves else float(row[4].split()[0]) == round(found - 1 / 3, 3)


def test_sources_need_what_the_demo_left(tmp_path) -> None:
    with pytest.raises(MsifError, match="run make demo first"):
        sources.main(["--demo", str(tmp_path / "none"), "--output", str(tmp_path / "out")])


def test_the_command_line_names_what_is_wrong(tmp_path) -> None:
    for flags, named in ((["--data", str(tmp_path)], "--data"), (["--halves", "1"], "--halves")):
        with pytest.raises(MsifError, match=named):
            command.main(["--output", str(tmp_path / "out"), *flags])
