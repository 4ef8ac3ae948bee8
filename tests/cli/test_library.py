"""``msif.attribute`` and ``msif.Stage``: what the commands do, from names or objects, in a few lines."""

from dataclasses import replace
from math import ceil

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from worlds import ALL, FACTS, QUERY, by_candidate, influence, save_lm, scores, write_rows

import msif
from msif.data.queries import Query
from msif.errors import MsifError
from msif.job import Job
from msif.options import Options

ASKED = [("Where was Ada born?", " Linz")]


@pytest.fixture(scope="module")
def stages(world):
    """On the factors that the command has fitted."""
    base = msif.Stage(world.base, world.folder / "corpus.jsonl", world.base_factors)
    return [base, msif.Stage(world.tuned, world.folder / "pairs.jsonl", world.tuned_factors)]


def of(result, query=0):
    return {result.ids[row]: score for row, score in result.scores(query).items()}


def test_it_is_what_the_command_does_on_its_own_factors(stages, world, multi_stage, tmp_path):
    before = {file: file.stat().st_mtime_ns for file in world.base_factors.iterdir()}
    result = msif.attribute(stages, ASKED, "all", top_k=3)
    assert {file: file.stat().st_mtime_ns for file in world.base_factors.iterdir()} == before  # reused
    assert of(result) == by_candidate(multi_stage)
    saved = result.save(tmp_path / "saved")
    assert (saved / "scores.parquet").is_file() and "born" in (saved / "page.html").read_text()
    assert by_candidate(saved) == by_candidate(multi_stage)
    best = result.top(0, 2)
    assert [one.rank for one in best] == [1, 2] and best[0].score == max(of(result).values())
    assert best[0].text in FACTS and sum(part for _, part in best[0].tokens) == pytest.approx(best[0].score, rel=1e-4)
    worst = result.top("0", 1, "opponent")
    assert worst[0].score == min(of(result).values()) < 0
    frame = result.to_pandas()
    columns = ["query_id", "candidate_id", "row", "score", "rank", "share", "self_influence", "prompt", "answer"]
    assert list(frame.columns) == columns and len(frame) == len(FACTS)
    assert frame[frame.score > 0].share.sum() == pytest.approx(1) and set(frame.answer) == {" Linz"}
    told = result.told[0]
    assert [token for token, _ in told["tokens"]] == list(" Linz") and all(p < 0 for _, p in told["tokens"])
    assert told["occurrences"] == 2 and told["documents"] == len(FACTS)  # "Linz" stands in two of them
    for one in best:  # each letter of the answer has its own parts, which add up to the whole
        assert len(one.by_answer) == len(" Linz") and one.norm > 0 and one.lexical["score"] >= 0
        summed = [sum(parts) for parts in zip(*one.by_answer, strict=True)]
        largest = max(abs(part) for _, part in one.tokens)
        assert summed == pytest.approx([part for _, part in one.tokens], abs=2e-3 * largest)
    assert dict(zip(frame.candidate_id, frame.score, strict=True)) == of(result)
    assert result._repr_html_().startswith('<iframe sandbox="allow-scripts"') and "1 queries × 8" in repr(result)


def test_objects_in_the_place_of_names(stages, world, tmp_path):
    def loaded(folder):
        return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    (base, tokenizer), (tuned, other) = loaded(world.base), loaded(world.tuned)
    pairs = datasets.Dataset.from_list(
        [{"prompt": "Where was Ada born?", "completion": " Linz"}, {"prompt": "What is late?", "completion": " I"}]
    )
    given = [
        msif.Stage(base, FACTS, tmp_path / "pt", tokenizer=tokenizer),
        msif.Stage(tuned, pairs, tmp_path / "ft", tokenizer=other),
    ]
    result = msif.attribute(given, [{"id": "a", "prompt": "Where was Ada born?", "completion": " Linz"}], "all")
    named = msif.attribute(stages, ASKED, "all")
    assert list(result.scores("a").values()) == pytest.approx(list(named.scores().values()), rel=1e-5)
    assert (tmp_path / "pt" / "manifest.json").is_file()
    again = msif.attribute(given, ["Where was Ada born?"], "all", method="gdp", max_new_tokens=3)
    assert again.rankings[0].query.completion  # the model's own answer
    assert not base.training and not any(module._forward_hooks for module in base.modules())  # as it was given


def test_one_stage_and_factors_without_data(world):
    stage = msif.Stage(world.base, factors=world.base_factors)
    result = msif.attribute(stage, ASKED, "all", corpus=FACTS)
    flags = ["--pretrained", world.base, "--pretrained-factors", world.base_factors, "--method", "single-stage"]
    assert (
        influence(*flags, "--corpus", world.folder / "corpus.jsonl", *QUERY, *ALL, "--output", world.folder / "o") == 0
    )
    assert list(result.scores().values()) == list(by_candidate(world.folder / "o").values())


@pytest.mark.parametrize("modules", ["maps", "everything"])
def test_tied_models_by_both_commands(world, tmp_path, modules):
    """Factors of vocabulary-sized weights, and scores that parts add up to."""
    for seed, name in ((0, "pt"), (1, "ft")):
        save_lm(tmp_path / name, seed=seed, tie_word_embeddings=True)
    data = {"pt": world.folder / "corpus.jsonl", "ft": world.folder / "pairs.jsonl"}
    given = [msif.Stage(tmp_path / name, data[name], tmp_path / f"{name}-f", modules=modules) for name in ("pt", "ft")]
    result = msif.attribute(given, ASKED, "all")
    stored = msif.FactorStore.open(tmp_path / "pt-f")
    tied = stored["embed_in"]
    assert tied.Q_G is None and tied.Lambda.shape == (1, 258, 8)
    assert ("final_layer_norm.weight" in stored) == (modules == "everything")
    best = result.top(0, 1)[0]
    assert sum(best.blocks.values()) == pytest.approx(best.score, rel=1e-4) and "embed_in" in best.blocks
    assert sum(part for _, part in best.tokens) == pytest.approx(best.score, rel=1e-4)
    flags = ["--pretrained", tmp_path / "pt", "--finetuned", tmp_path / "ft", "--corpus", data["pt"]]
    flags += ["--pretrained-factors", tmp_path / "pt-f", "--finetuned-factors", tmp_path / "ft-f"]
    assert influence(*flags, *QUERY, *ALL, "--output", tmp_path / "out") == 0
    assert by_candidate(tmp_path / "out") == pytest.approx(of(result), rel=1e-5)


def at_most(cost, queries):
    return ceil(4 * cost.making * queries)


@pytest.mark.parametrize("method", ["multi-stage", "gdp"])
@pytest.mark.parametrize("held", [1, 2, 3, 5])
def test_queries_in_passes_are_queries_at_once(stages, monkeypatch, method, held):
    asked = [
        ("Where was Ada born?", " Linz"),
        ("Who?", " Ada"),
        ("What?", " A goat"),
        ("Is it late", " yes"),
        ("x", "y"),
    ]
    whole = msif.attribute(stages, asked, "all", method=method, top_k=2)
    passes = []
    score = msif.InfluenceScorer.score_vectors
    monkeypatch.setattr(Job, "room", property(lambda job: at_most(job.scorer.cost(), held)))
    monkeypatch.setattr(
        msif.InfluenceScorer, "score_vectors", lambda self, v, *rest: passes.append(v) or score(self, v, *rest)
    )
    found = msif.attribute(stages, asked, "all", method=method, top_k=2)
    assert [next(iter(v.values())).queries for v in passes] == [len(asked[i : i + held]) for i in range(0, 5, held)]
    for query in range(len(asked)):
        assert of(found, query) == pytest.approx(of(whole, query), rel=2e-3)
        for one, other in zip(found.top(query), whole.top(query), strict=True):
            assert (one.query_id, one.candidate_id) == (other.query_id, other.candidate_id)
            largest = max(abs(part) for _, part in other.tokens)
            parts = [part for _, part in other.tokens]
            assert [part for _, part in one.tokens] == pytest.approx(parts, abs=1e-3 * largest)


def test_a_rank_is_taken_while_vectors_are_made(stages, monkeypatch):
    asked = [("Where was Ada born?", " Linz"), ("Who?", " Ada"), ("What?", " A goat"), ("Is it late", " yes")]
    whole = msif.attribute(stages, asked, "all", query_rank=2)
    made = []
    gradients = msif.attribution.scorers.collected_gradients

    def counted(side, queries, measurement):
        found = gradients(side, queries, measurement)
        made.append(sum(map(len, found[1])))
        return found

    monkeypatch.setattr("msif.attribution.scorers.collected_gradients", counted)
    # room for two while they are made, and for all once they are
    monkeypatch.setattr(Job, "room", property(lambda job: 2 * at_most(job.scorer.cost(), 2)))
    found = msif.attribute(stages, asked, "all", query_rank=2)
    assert sum(made) == 4 and max(made) == 2 and len(found.provenance["rank_errors"]) == 4
    for query in range(4):
        assert of(found, query) == pytest.approx(of(whole, query), rel=1e-3, abs=1e-6)


def test_the_command_takes_passes_too_and_resumes_each(world, tmp_path, monkeypatch):
    rows = [{"id": name, "prompt": name, "completion": " Linz"} for name in ("Ada", "Brno", "Graz")]
    queries = write_rows(tmp_path / "q.jsonl", rows)
    flags = [*world.pair, *world.factors, *ALL, "--queries", queries, "--top-k", 1]
    assert influence(*flags, "--output", tmp_path / "whole") == 0
    monkeypatch.setattr(Job, "room", property(lambda job: at_most(job.scorer.cost(), 1)))
    score, calls = msif.InfluenceScorer.score_vectors, []

    def failing(self, vectors, candidates, partial):
        calls.append(partial)
        if len(calls) == 3:
            raise RuntimeError("here")
        return score(self, vectors, candidates, partial)

    monkeypatch.setattr(msif.InfluenceScorer, "score_vectors", failing)
    with pytest.raises(RuntimeError, match="here"):
        influence(*flags, "--output", tmp_path / "out")
    kept = sorted(file.name for file in (tmp_path / "out").glob("partial*"))
    assert kept == ["partial.1.safetensors", "partial.safetensors"]
    assert influence(*flags, "--output", tmp_path / "out") == 0
    assert [partial.complete for partial in calls[3:]] == [True, True, True]
    for name in ("Ada", "Brno", "Graz"):
        assert by_candidate(tmp_path / "out", name) == pytest.approx(by_candidate(tmp_path / "whole", name), rel=2e-3)
    assert not list((tmp_path / "out").glob("partial*")) and len(scores(tmp_path / "out")) == 3 * len(FACTS)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda base, s: msif.attribute([], ASKED), "0 stages are given: give one, or pre-training and fine-tuning"),
        (lambda base, s: msif.attribute(s, ASKED, "best:3"), "best"),
        (lambda base, s: msif.attribute(s, ASKED, method="odd"), "there is no method 'odd'"),
        (lambda base, s: msif.attribute(s, [3]), "query 0 is int: give a prompt"),
        (lambda base, s: msif.attribute(s, []), "there is no query: give at least one"),
        (lambda base, s: msif.attribute(s, {"prompt": "x"}), "queries is dict: put it into a list"),
        (lambda base, s: msif.attribute(s, Query("0", "x", "y")), "queries is Query: put it into a list"),
        (
            lambda base, s: msif.attribute(s, "Who is late?"),
            "no file of queries 'Who is late.': put prompts into a list",
        ),
        (lambda base, s: msif.attribute(["a", "b"], ASKED), r"a stage is str: give msif\.Stage"),
        (lambda base, s: msif.attribute(s, ASKED, damping=-1), r"damping is -1: give msif\.Damping"),
        (
            lambda base, s: msif.Damping(-1),
            "damping is -1: give a number of 0 or more, 'auto', 'evidence', ",
        ),
        (lambda base, s: msif.Damping("auto:0"), "auto:X with X above 0"),
        (lambda base, s: msif.Damping(alpha="auto:two"), "auto:X with X above 0"),
        (lambda base, s: msif.Damping(alpha="10"), "'10' is no damping: write a number"),
        (lambda base, s: msif.Damping(alpha=float("nan")), "alpha is nan: give"),
        (lambda base, s: msif.Damping(damping_scale="auto"), "damping_scale is 'auto': give a number of 0 or more\\."),
        (lambda base, s: msif.attribute(s, [{"id": "a", "prompt": "x"}] * 2), "Two queries in the queries have the id"),
        (lambda base, s: msif.attribute(msif.Stage(base), ASKED), "no documents to choose from: give corpus="),
        (lambda base, s: msif.attribute(msif.Stage(base, FACTS), ASKED, "all"), "has no factors: give factors="),
        (lambda base, s: msif.attribute(msif.Stage(base, 3, "f"), ASKED), "data is int: give a file"),
        (lambda base, s: msif.Stage(torch.nn.Linear(2, 2)), "needs its tokenizer"),
        (lambda base, s: msif.attribute(s, ASKED, memory=1000), "weights take .* give more"),
        (lambda base, s: msif.attribute(s, ASKED, odd=3), "odd"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(stages, world, call, match):
    with pytest.raises(MsifError, match=match) as caught:
        call(world.base, stages)
    assert "\n" not in str(caught.value)


def test_a_query_without_room_for_its_vectors_is_told_before_it_is_answered(stages, monkeypatch):
    monkeypatch.setattr(Job, "room", property(lambda job: at_most(job.scorer.cost(), 1) - 4))
    monkeypatch.setattr(Job, "answered", None)
    with pytest.raises(MsifError, match=r"one query takes .* while its vectors are made.*larger --memory"):
        msif.attribute(stages, ASKED, "all")


def test_options_are_frozen_and_documented():
    assert set(Options.__dataclass_fields__) <= set(Options.__doc__.replace(",", " ").replace(":", " ").split())
    assert replace(Options(), top_k=3).top_k == 3 and np.isscalar(Options().batch_tokens)
