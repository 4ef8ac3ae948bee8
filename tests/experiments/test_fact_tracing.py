"""The benchmark of fact tracing, on pairs made here: candidate sets, measures, reports, the command, bad input."""

import json
from dataclasses import replace

import numpy as np
import pytest
from births import NAMES, write_data
from pairs import write_rows

from experiments.common.methods import Method
from experiments.common.search import search_by_words
from experiments.fact_tracing.__main__ import options_of, parser, trace
from experiments.fact_tracing.candidates import Holders, Ranking, rank_among
from experiments.fact_tracing.measures import Measured, measures
from experiments.fact_tracing.methods import MULTI_STAGE
from experiments.fact_tracing.options import Sizes
from experiments.fact_tracing.report import answered, differences
from experiments.facts.reading import Asked, Pair, read_pair
from msif.errors import MsifError
from msif.json_text import json_lines


def fact(id, answers, sources, answered=True):
    return Asked(id, "r", answers, sources, f"Question: Who {id}?\nAnswer:", f" {answers[0]}", answered)


def by_hand(texts, asked):
    from pathlib import Path

    return Pair(Path("nowhere"), tuple(texts), (), tuple(asked), "a", "b")


def test_what_is_read(pair_folder):
    pair = read_pair(pair_folder)
    assert pair.counts == {
        "sentences": 34,
        "facts asked of the model": 8,
        "facts without source, left out": 0,
        "facts that the model answers": 4,
    }
    assert pair.asked[0].text == "Where was Eve born? Oslo" and pair.asked[0].sources == (8, 9)
    assert len(pair.finetuning) == 4 and pair.pretrained.endswith("pretrained")


def test_candidate_sets_by_hand():
    texts = ["a Rome", "b Romeo", "c Rome", "d rome", "e Lima and Rome", "f", "g", "h"]
    pair = by_hand(texts, [fact("x", ("Rome", "Lima"), (0,)), fact("y", ("Paris",), (6,))])
    fixed = np.array([[0, 0, 0, 0, 0, 0, 9.0, 8.0], [0, 9.0, 8.0, 0, 0, 0, 0, 0]])
    sizes = Sizes(trials=1, facts=2, bm25=2, same_target=5, random=1)
    ranking = rank_among(pair, "rerank", sizes, 0, lambda queries, texts: fixed)
    (shared,) = set(ranking.candidates[0]) - {0, 2, 4, 6, 7} or {None}
    # the source, the two others that hold an answer as a word, the best two by words, and the shared one
    assert set(ranking.candidates[0]) == {0, 2, 4, 6, 7} | ({shared} - {None})
    assert {1, 2, 6} <= set(ranking.candidates[1]) <= {1, 2, 6, *ranking.candidates[0]}
    assert ranking.relevant(0).sum() == 1 and ranking.candidates[0][ranking.relevant(0)] == [0]
    assert ranking.counts["facts whose answer is in none of their sources"] == 1
    assert ranking.named["facts whose answer is in none of their sources"] == ["y"]
    assert ranking.counts["facts with fewer than 5 other sentences that hold the answer"] == 2
    assert ranking.counts["such sentences of a fact, mean"] == 1.0  # two and none
    fewer = rank_among(pair, "rerank", replace(sizes, same_target=1), 0, lambda queries, texts: fixed)
    assert len({2, 4} & set(fewer.candidates[0])) == 1 or shared in (2, 4)


def test_a_trials_facts_share_random_sentences_and_no_fact_is_in_two_trials():
    texts = [f"word{i}" for i in range(200)]
    pair = by_hand(texts, [fact(f"f{i}", (f"none{i}",), (i,)) for i in range(9)])
    sizes = Sizes(trials=2, facts=4, bm25=1, same_target=1, random=20)
    ranking = rank_among(pair, "rerank", sizes, 3, lambda queries, texts: np.zeros((len(queries), len(texts))))
    assert len({fact.id for fact in ranking.asked}) == 8 and ranking.trial.tolist() == [0] * 4 + [1] * 4
    common = [set.intersection(*(set(ranking.candidates[q]) for q in trial)) for trial in ([0, 1, 2, 3], [4, 5, 6, 7])]
    assert all(20 <= len(rows) <= 21 for rows in common) and common[0] != common[1]  # row 0 leads a constant BM25
    again = rank_among(pair, "rerank", sizes, 3, lambda queries, texts: np.zeros((len(queries), len(texts))))
    assert [rows.tolist() for rows in again.candidates] == [rows.tolist() for rows in ranking.candidates]
    whole = rank_among(pair, "full", sizes, 3, search_by_words)
    assert [f.id for f in whole.asked] == [f.id for f in ranking.asked]
    assert all(len(rows) == 200 for rows in whole.candidates)


def test_holders_look_for_whole_words_and_any_name():
    holders = Holders(["New York (city)", "New Yorker", "C++ code", "x"])
    assert holders.of(["New York"]).tolist() == [0]
    assert holders.of(["C++", "x"]).tolist() == [2, 3]
    assert holders.of(["absent"]).tolist() == []


def test_bm25_reads_words_and_not_characters():
    scores = search_by_words(["Where was Zoe born?"], ["zoe sleeps", "ew oz be no raw hes", "born was"])
    assert scores[0, 0] > scores[0, 1] and scores[0, 2] > scores[0, 1]


@pytest.mark.parametrize("sizes, says", [
    (Sizes(1, 3, 1, 1, 1), "use --facts 2"),
    (Sizes(1, 2, 9, 1, 1), "--bm25 asks for 9"),
    (Sizes(1, 2, 1, 1, 9), "--random asks for 9"),
])  # fmt: skip
def test_sets_that_cannot_be_drawn_are_errors(sizes, says):
    pair = by_hand(["a", "b", "c"], [fact("x", ("a",), (0,)), fact("y", ("b",), (1,))])
    with pytest.raises(MsifError, match=says):
        rank_among(pair, "rerank", sizes, 0, search_by_words)


def test_measures_of_each_fact_are_of_its_own_candidates():
    asked = (fact("x", ("a",), (3,)), fact("y", ("a",), (5, 9)))
    ranking = Ranking(asked, np.array([0, 0]), (np.array([1, 3]), np.array([3, 5, 9])))
    scores = np.array([[5.0, 7.0, 99.0, 99.0], [99.0, 1.0, 3.0, 2.0]])  # rows 1, 3, 5, 9
    assert ranking.rows.tolist() == [1, 3, 5, 9]
    flat = ranking.own(scores, [0, 1])
    assert flat.tolist() == [5, 7, 1, 3, 2]
    assert measures(ranking, [0, 1], flat).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert measures(ranking, [1], ranking.own(scores[1:], [1])).tolist() == [[1, 1, 1]]


def measured(family, values, unit=False, facts=None):
    facts = np.arange(len(values)) if facts is None else facts
    return Measured(Method(family), "all", unit, facts, np.repeat(np.array(values, float)[:, None], 3, axis=1), 0.0)


def test_paired_differences_and_answered_facts():
    asked = tuple(fact(str(i), ("a",), (0,), answered=i < 2) for i in range(4))
    ranking = Ranking(asked, np.array([0, 0, 1, 1]), (np.arange(2),) * 4)
    chosen = [measured(MULTI_STAGE, [1, 0.5, 1, 0]), measured("other", [0.5, 0, 1, 1])]
    (row,) = differences(chosen, ranking, MULTI_STAGE).records()
    assert row["method"] == "other"
    assert [row[name].mean for name in ("all trials", "trial 1", "trial 2")] == [0.0, 0.5, -0.5]
    assert (row["trial 1"].low, row["trial 1"].high) == (0.5, 0.5)  # paired: both facts gain as much
    first = answered(chosen, ranking).records()[0]
    assert first["MRR, answered"].mean == 0.75 or first["method"] == "other"


def test_the_command_writes_tables_and_a_plot(pair_folder, tmp_path):
    flags = ["--pair", str(pair_folder), "--output", str(tmp_path), "--results", str(tmp_path / "docs")]
    flags += [
        "--methods",
        "multi-stage",
        "single-stage",
        "gdp",
        "bm25",
        "random",
        "cg",
        "--dampings",
        "1e-2",
        "0.1mean",
    ]
    flags += ["--trials", "2", "--facts", "3", "--bm25", "3", "--same-target", "2", "--random", "4"]
    flags += ["--cg-facts", "1", "--cg-iterations", "1"]
    values = parser().parse(flags)
    assert options_of(values).dampings == ("1e-2", "0.1mean") and options_of(values).cg.iterations == 1
    trace(values)
    text = (tmp_path / "docs" / "fact_tracing.md").read_text()
    assert "| random order" in text and "beside others on the same 2 facts; the solver ended at" in text
    contents = json.loads((tmp_path / "docs" / "fact_tracing.json").read_text())
    assert contents["configuration"]["facts"] == 3
    again = parser().parse(["--config", str(tmp_path / "docs" / "config.yaml")])
    assert {**vars(again), "config": None} == vars(values)
    assert len(contents["tables"]) == 8
    everything = json.loads((tmp_path / "docs" / "fact_tracing_all.json").read_text())["tables"][0]["rows"]
    assert len(everything) == 6 * (2 + 2 + 1) + 2 + 2
    assert (tmp_path / "docs" / "fact_tracing_damping.png").stat().st_size < 200_000


def spoiled(tmp_path, change):
    write_data(tmp_path)
    change(tmp_path)
    return tmp_path


@pytest.mark.parametrize("change, says", [
    (lambda f: (f / "accuracy.json").unlink(), "does not tell which facts the model answers"),
    (lambda f: (f / "accuracy.json").write_text('{"answered": {}}'), "does not know fact 'b:Eve'"),
    (lambda f: (f / "data" / "corpus.jsonl").unlink(), "there is no .*corpus.jsonl"),
    (lambda f: (f / "data" / "corpus.jsonl").write_text(""), "is empty"),
    (lambda f: (f / "data" / "corpus.jsonl").write_text("{"), "line 1 of .* is not JSON"),
    (lambda f: (f / "data" / "corpus.jsonl").write_text('{"text": "a"}\n'), "row 9 of 1"),
    (lambda f: (f / "data" / "queries.jsonl").write_text('{"id": "b:Eve"}\n'), "has no 'prompt'"),
    (
        lambda f: (f / "data" / "queries.jsonl").write_text('{"id": "?", "prompt": "p", "completion": "c"}\n'),
        "of no fact in facts.jsonl",
    ),
    (
        lambda f: (f / "data" / "facts.jsonl").write_text(
            "".join(
                json.dumps({"id": f"b:{name}", "relation": "b", "answers": ["a"], "sources": []}) + "\n"
                for name in NAMES
            )
        ),
        "has a source",
    ),
])  # fmt: skip
def test_a_pair_that_does_not_hold_together_is_an_error(tmp_path, change, says):
    with pytest.raises(MsifError, match=says):
        read_pair(spoiled(tmp_path, change))


def test_facts_without_source_are_counted(tmp_path):
    write_data(tmp_path)
    path = tmp_path / "data" / "facts.jsonl"
    rows = list(json_lines(path))
    rows[5]["sources"] = []
    write_rows(path, rows)
    pair = read_pair(tmp_path)
    assert pair.counts["facts without source, left out"] == 1 and len(pair.asked) == 7
    assert pair.named == {"facts without source": ["b:Finn"]}
