"""The benchmark of fact tracing, on pairs made here: candidate sets, measures, shared passes, resuming, bad input."""

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments.common import training
from experiments.fact_tracing import running, stacked
from experiments.fact_tracing.__main__ import options_of, parser, trace
from experiments.fact_tracing.baselines import bm25_scores, pooled, representations
from experiments.fact_tracing.candidates import Holders, Ranking, rank_among
from experiments.fact_tracing.measures import Measured, measure, measures, readings
from experiments.fact_tracing.methods import CG, MULTI_STAGE, Baseline, Influence, damping_of, methods_named, shown
from experiments.fact_tracing.models import Models
from experiments.fact_tracing.options import CGOptions, Options, Sizes
from experiments.fact_tracing.reading import Asked, Pair, read_pair
from experiments.fact_tracing.report import answered, differences
from experiments.fact_tracing.running import compute, facts_of, identity_of
from experiments.fact_tracing.stacked import kind_of, packed
from experiments.fact_tracing.store import ScoreStore, keyed
from msif.attribution.scorers import InfluenceScorer
from msif.attribution.stages import build_scorer
from msif.errors import MsifError

CITIES = ["Oslo", "Rome", "Lima", "Cairo"]
NAMES = ["Ada", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jon", "Kai", "Lea"]
SMALL = Sizes(trials=2, facts=3, bm25=3, same_target=2, random=4)


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_data(folder):
    """Twelve people and where they were born, stated twice each; ten sentences that state nothing."""
    city = {name: CITIES[i % 4] for i, name in enumerate(NAMES)}
    texts = [text for n in NAMES for text in (f"{n} was born in {city[n]}.", f"The birthplace of {n} is {city[n]}.")]
    texts += [f"In {CITIES[i % 4]} there are {i} bridges." for i in range(10)]
    facts = [
        {"id": f"b:{n}", "relation": "b", "answers": [city[n]], "sources": [2 * i, 2 * i + 1]}
        for i, n in enumerate(NAMES)
    ]
    rows = [
        {"id": f"b:{n}", "prompt": f"Question: Where was {n} born?\nAnswer:", "completion": f" {city[n]}"}
        for n in NAMES
    ]
    write_rows(folder / "data" / "corpus.jsonl", [{"id": f"s{i}", "text": text} for i, text in enumerate(texts)])
    write_rows(folder / "data" / "facts.jsonl", facts)
    write_rows(folder / "data" / "finetune.jsonl", rows[:4])
    write_rows(folder / "data" / "queries.jsonl", rows[4:])
    (folder / "accuracy.json").write_text(
        json.dumps({"answered": {row["id"]: i % 2 == 0 for i, row in enumerate(rows)}})
    )
    return texts, rows


@pytest.fixture(scope="module")
def pair_folder(tmp_path_factory):
    """Two tiny models, trained for one epoch each."""
    folder = tmp_path_factory.mktemp("pair")
    texts, rows = write_data(folder)
    tokenizer = training.build_tokenizer(texts + [row["prompt"] + row["completion"] for row in rows], 400)
    model = training.new_model(tokenizer, training.ModelSize(layers=2, hidden=16, heads=2, positions=64), 0)
    schedule = training.Schedule(1, 1e-2, 8)
    training.train(model, training.plain_text(tokenizer, texts), schedule, 0, "").save(folder / "pretrained", tokenizer)
    asked = [training.completion(tokenizer, row["prompt"], row["completion"]) for row in rows[:4]]
    training.train(model, asked, schedule, 0, "").save(folder / "finetuned", tokenizer)
    return folder


@pytest.fixture(scope="module")
def pair(pair_folder):
    return read_pair(pair_folder)


@pytest.fixture(scope="module")
def models(pair, tmp_path_factory):
    return Models(pair, tmp_path_factory.mktemp("factors"), batch_tokens=256)


@pytest.fixture(scope="module")
def ranking(pair):
    return rank_among(pair, "rerank", SMALL, 0, bm25_scores)


def fact(id, answers, sources, answered=True):
    return Asked(id, "r", answers, sources, f"Question: Who {id}?\nAnswer:", f" {answers[0]}", answered)


def by_hand(texts, asked):
    from pathlib import Path

    return Pair(Path("nowhere"), tuple(texts), (), tuple(asked), "a", "b")


def test_what_is_read(pair):
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
    whole = rank_among(pair, "full", sizes, 3, bm25_scores)
    assert [f.id for f in whole.asked] == [f.id for f in ranking.asked]
    assert all(len(rows) == 200 for rows in whole.candidates)


def test_holders_look_for_whole_words_and_any_name():
    holders = Holders(["New York (city)", "New Yorker", "C++ code", "x"])
    assert holders.of(["New York"]).tolist() == [0]
    assert holders.of(["C++", "x"]).tolist() == [2, 3]
    assert holders.of(["absent"]).tolist() == []


def test_bm25_reads_words_and_not_characters():
    scores = bm25_scores(["Where was Zoe born?"], ["zoe sleeps", "ew oz be no raw hes", "born was"])
    assert scores[0, 0] > scores[0, 1] and scores[0, 2] > scores[0, 1]


@pytest.mark.parametrize("sizes, says", [
    (Sizes(1, 3, 1, 1, 1), "use --facts 2"),
    (Sizes(1, 2, 9, 1, 1), "--bm25 asks for 9"),
    (Sizes(1, 2, 1, 1, 9), "--random asks for 9"),
])  # fmt: skip
def test_sets_that_cannot_be_drawn_are_errors(sizes, says):
    pair = by_hand(["a", "b", "c"], [fact("x", ("a",), (0,)), fact("y", ("b",), (1,))])
    with pytest.raises(MsifError, match=says):
        rank_among(pair, "rerank", sizes, 0, bm25_scores)


def rigged(kind):
    """A method that knows the sources, or the opposite, or nothing."""

    def scores(models, ranking):
        relevant = np.array([np.isin(ranking.rows, fact.sources) for fact in ranking.asked], dtype=float)
        return {"score/all": {"perfect": relevant, "inverse": -relevant, "constant": 0 * relevant}[kind]}

    return Baseline(kind, kind, scores=scores)


@pytest.mark.parametrize("kind", ["perfect", "inverse", "constant"])
def test_measures_of_rigged_scores_end_to_end(kind, models, ranking, tmp_path):
    method = rigged(kind)
    store = ScoreStore(tmp_path, {})
    (result,) = measure(method, compute([method], models, ranking, store)[kind], ranking)
    sizes = np.array([len(rows) for rows in ranking.candidates])
    sources = np.array([ranking.relevant(q).sum() for q in range(len(sizes))])
    assert (sources == 2).all() and (sizes > 4).all()
    if kind == "perfect":  # tied first places both have the worse rank, 2
        assert (result.values == [1 / 2, 1, 1]).all()
    else:
        assert result.values[:, 0] == pytest.approx(1 / sizes)
        assert (result.values[:, 1:] == (sizes <= 10)[:, None]).all()


def test_measures_of_each_fact_are_of_its_own_candidates():
    asked = (fact("x", ("a",), (3,)), fact("y", ("a",), (5, 9)))
    ranking = Ranking(asked, np.array([0, 0]), (np.array([1, 3]), np.array([3, 5, 9])))
    scores = np.array([[5.0, 7.0, 99.0, 99.0], [99.0, 1.0, 3.0, 2.0]])  # rows 1, 3, 5, 9
    assert ranking.rows.tolist() == [1, 3, 5, 9]
    flat = ranking.own(scores, [0, 1])
    assert flat.tolist() == [5, 7, 1, 3, 2]
    assert measures(ranking, [0, 1], flat).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert measures(ranking, [1], ranking.own(scores[1:], [1])).tolist() == [[1, 1, 1]]


def influences(*dampings):
    return methods_named(["multi-stage", "gdp"], Options(dampings=dampings))


def restricted(stage, kind):
    names = [module.name for module in stage.side.tracked if kind in ("all", kind_of(module.name))]
    return replace(stage, side=stage.side.restricted(names))


@pytest.mark.parametrize("normalize", ["none", "unit"])
@pytest.mark.parametrize("modules", ["all", "mlp", "attention"])
def test_readings_of_the_shared_pass_equal_scorers_of_their_own(modules, normalize, models, ranking, tmp_path):
    methods = influences("1e-3", "0.1mean", "auto")
    size = sum(m.shape[0] * m.shape[1] for m in models.stage("pretrained").side.tracked) * 4 / 1e9
    # four vectors at a time, where a method has six: every method is cut
    done = compute(methods, models, ranking, ScoreStore(tmp_path, identity_of(models, ranking)), 4.5 * size)
    queries, candidates = models.queries(ranking.asked), models.sentences(ranking.rows)
    for method in methods:
        damping = None if method.damping is None else damping_of(method.settings["damping"])
        stages = [restricted(models.fitted(which, tau=True), modules) for which in ("pretrained", "finetuned")]
        scorer = build_scorer("gdp" if damping is None else "multi-stage", *stages, damping, normalize=normalize)
        expected = ranking.own(scorer.score(queries, candidates).values, range(len(ranking.asked)))
        found = {(m, unit): flat for m, unit, flat in readings(method, done[method.name])}
        assert len(found) == 6
        scale = np.abs(expected).max()
        assert found[modules, normalize == "unit"] / scale == pytest.approx(expected / scale, abs=2e-5)


def test_every_method_runs_and_orders_what_it_should(models, ranking, tmp_path):
    options = Options(dampings=("0.1mean",), cg=CGOptions(facts=1, iterations=1, examples=8))
    names = ["alpha", "single-stage", "single-stage-finetuned", "source", "cg", "no-hop", "measurements", "whole-heads"]
    names += ["representation", "trak", "logra", "random"]
    methods = methods_named(names, options)
    done = compute(methods, models, ranking, ScoreStore(tmp_path, identity_of(models, ranking)))
    pairs = sum(len(rows) for rows in ranking.candidates)
    for method in methods:
        found = list(readings(method, done[method.name]))
        few = method.family == CG
        assert facts_of(method, ranking) == ([0, 3] if few else [0, 1, 2, 3, 4, 5])
        expected = len(ranking.candidates[0]) + len(ranking.candidates[3]) if few else pairs
        assert all(len(flat) == expected and np.isfinite(flat).all() and np.ptp(flat) > 0 for *_, flat in found)
        # CG's modules mix, so MLP alone is not a part of its sum
        assert len(found) == (2 if few or method.name == "logra" else 6 if isinstance(method, Influence) else 1)
    assert len({flat.tobytes() for m in methods for *_, flat in readings(m, done[m.name])}) == sum(
        len(list(readings(m, done[m.name]))) for m in methods
    )


def test_cg_equals_its_own_scorer_on_few_facts(models, ranking, tmp_path):
    (method,) = methods_named(["cg"], Options(cg=CGOptions(("1.0",), 1, 1, 8)))
    done = compute([method], models, ranking, ScoreStore(tmp_path, identity_of(models, ranking)))
    scorer = method.scorer(models)
    asked = [ranking.asked[0], ranking.asked[3]]
    values = scorer.score(models.queries(asked), models.sentences(ranking.rows)).values
    expected = ranking.own(values, [0, 3])
    (_, _, plain), _ = readings(method, done[method.name])
    assert done[method.name]["residual"] > 0
    assert plain == pytest.approx(expected, rel=1e-3, abs=1e-4 * float(np.abs(expected).max()))


def test_a_finished_method_is_not_computed_again(models, ranking, tmp_path, monkeypatch):
    methods = [*influences("1e-3", "1e-2"), rigged("perfect")]
    size = sum(m.shape[0] * m.shape[1] for m in models.stage("pretrained").side.tracked) * 4 / 1e9
    store = ScoreStore(tmp_path, identity_of(models, ranking))
    passes = []

    def interrupted(*arguments):
        passes.append(1)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return stacked.score_parts(*arguments)

    monkeypatch.setattr(running, "score_parts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compute(methods, models, ranking, store, 4.5 * size)  # 18 vectors: five passes
    kept = [store.has(method.name, method.settings) for method in methods]
    assert kept == [True, False, False, True]  # two passes of four finish one method of six
    times = {method.name: store._path(method.name, method.settings).stat().st_mtime_ns for method in methods[:1]}
    done = compute(methods, models, ranking, store, 1.0)
    assert len(passes) == 4  # the other two in one pass
    assert times == {name: store._path(name, methods[0].settings).stat().st_mtime_ns for name in times}
    compute(methods, models, ranking, store, 1.0)
    assert len(passes) == 4
    fresh = compute(methods, models, ranking, ScoreStore(tmp_path / "other", {}), 1.0)
    for name, arrays in done.items():
        for key in set(arrays) - {"seconds"}:
            assert arrays[key] == pytest.approx(fresh[name][key], rel=1e-4, abs=1e-6 * float(np.abs(arrays[key]).max()))


def test_scores_of_other_settings_or_candidates_are_not_believed(models, ranking, tmp_path):
    store = ScoreStore(tmp_path, identity_of(models, ranking))
    store.save("m", {"damping": 1}, {"seconds": np.array(1.0)})
    assert store.has("m", {"damping": 1}) and not store.has("m", {"damping": 2})
    other = replace(ranking, candidates=ranking.candidates[::-1])
    assert not ScoreStore(tmp_path, identity_of(models, other)).has("m", {"damping": 1})
    assert ScoreStore(tmp_path, identity_of(models, ranking)).has("m", {"damping": 1})


def test_overwrite_removes_only_what_bears_the_same_name(tmp_path):
    old, other = keyed(tmp_path, "cg", 1), keyed(tmp_path, "cg-long", 1)
    for path in (old, other):
        path.mkdir()
    assert keyed(tmp_path, "cg", 2) != old and old.is_dir()
    keyed(tmp_path, "cg", 2, overwrite=True)
    assert not old.exists() and other.is_dir()
    keyed(tmp_path, "cg-long", 1, overwrite=True)
    assert other.is_dir()


def test_vectors_are_packed_in_order():
    facts = {"a": [0, 1, 2], "b": [5], "c": [0, 1]}
    passes = list(packed("abc", facts.__getitem__, 4))
    assert passes == [[("a", [0, 1, 2]), ("b", [5])], [("c", [0, 1])]]
    assert list(packed("ab", facts.__getitem__, 2)) == [[("a", [0, 1])], [("a", [2]), ("b", [5])]]


def test_fine_tuning_data_end_as_in_training(models, pair):
    (batch,) = list(models.data("finetuned"))
    tokenizer = models.finetuned.tokenizer
    place = batch.indices.tolist().index(0)
    ids = batch.input_ids[place][batch.attention_mask[place].bool()].tolist()
    row = pair.finetuning[0]
    tokens, start = training.completion(tokenizer, row["prompt"], row["completion"])
    assert ids == tokens and tokens[-1] == tokenizer.eos_token_id
    assert int(batch.supervised[place].sum()) == len(tokens) - start
    (asked,) = models.queries([pair.asked[0]])
    assert tokenizer.eos_token_id not in asked.input_ids.tolist()[0]


def test_representations_are_means_over_real_tokens(models, ranking):
    import torch

    hidden = torch.tensor([[[1.0], [3.0], [99.0]]])
    assert pooled(hidden, torch.tensor([[1, 1, 0]])).tolist() == [[2.0]]
    rows, together = representations(models.pretrained.model, models.sentences(ranking.rows))
    assert rows.tolist() == ranking.rows.tolist()
    alone = representations(models.pretrained.model, models.sentences(ranking.rows[:1]))[1]
    assert together[:1] == pytest.approx(alone, abs=1e-5)


def measured(family, values, unit=False, facts=None):
    method = Influence(family, family, None, scorer=lambda models: InfluenceScorer)
    facts = np.arange(len(values)) if facts is None else facts
    return Measured(method, "all", unit, facts, np.repeat(np.array(values, float)[:, None], 3, axis=1), 0.0)


def test_paired_differences_and_answered_facts():
    asked = tuple(fact(str(i), ("a",), (0,), answered=i < 2) for i in range(4))
    ranking = Ranking(asked, np.array([0, 0, 1, 1]), (np.arange(2),) * 4)
    chosen = [measured(MULTI_STAGE, [1, 0.5, 1, 0]), measured("other", [0.5, 0, 1, 1])]
    (row,) = differences(chosen, ranking).records()
    assert row["method"] == "other"
    assert [row[name].mean for name in ("all trials", "trial 1", "trial 2")] == [0.0, 0.5, -0.5]
    assert (row["trial 1"].low, row["trial 1"].high) == (0.5, 0.5)  # paired: both facts gain as much
    first = answered(chosen, ranking).records()[0]
    assert first["MRR, answered"].mean == 0.75 or first["method"] == "other"


def test_dampings_are_read_and_shown():
    assert damping_of("1e-3").damping == 1e-3 and damping_of("auto").damping == "auto"
    relative = damping_of("0.3mean")
    assert relative.damping is None and relative.damping_scale == 0.3
    assert [shown(text) for text in ("1e-3", "0.3mean", "auto")] == ["0.001", "0.3 mean", "1/τ"]
    for wrong in ("0", "-1", "x", "mean", "inf"):
        with pytest.raises(MsifError, match="no damping"):
            damping_of(wrong)
    with pytest.raises(MsifError, match="no method 'magic'"):
        methods_named(["magic"], Options())


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
    assert options_of(values).dampings == ("1e-2", "0.1mean") and options_of(values).cg.facts == 1
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
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[5]["sources"] = []
    write_rows(path, rows)
    pair = read_pair(tmp_path)
    assert pair.counts["facts without source, left out"] == 1 and len(pair.asked) == 7
    assert pair.named == {"facts without source": ["b:Finn"]}
