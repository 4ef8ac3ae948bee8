"""Scores of the methods of fact tracing, on a pair made here: shared passes, scorers of their own, resuming."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.common import training
from experiments.common.cache import Cache, keyed
from experiments.common.methods import Method
from experiments.common.search import search_by_words
from experiments.fact_tracing import running, stacked
from experiments.fact_tracing.candidates import rank_among
from experiments.fact_tracing.measures import measure, readings
from experiments.fact_tracing.methods import CG, damping_of, methods_named, possible, shown
from experiments.fact_tracing.models import Models
from experiments.fact_tracing.options import CGOptions, Options, Sizes
from experiments.fact_tracing.running import compute, facts_of, part_name, score_cache
from experiments.fact_tracing.stacked import kind_of, packed
from experiments.facts.reading import read_pair
from msif.attribution.damping import Damping
from msif.attribution.halves import Halves, foretold
from msif.attribution.moves import moved_side, of_half
from msif.attribution.stages import build_scorer
from msif.curvature.fit import FitSettings, fit
from msif.errors import MsifError

SMALL = Sizes(trials=2, facts=3, bm25=3, same_target=2, random=4, few=1)


@pytest.fixture(scope="module")
def pair(pair_folder):
    return read_pair(pair_folder)


@pytest.fixture(scope="module")
def models(pair, tmp_path_factory):
    return Models(pair, tmp_path_factory.mktemp("factors"), batch_tokens=256)


@pytest.fixture(scope="module")
def ranking(pair):
    return rank_among(pair, "rerank", SMALL, 0, search_by_words)


def rigged(kind, ranking):
    """A method that knows the sources, or the opposite, or nothing."""

    def search(queries, texts):
        assert queries == [fact.text for fact in ranking.asked]
        relevant = np.array([np.isin(range(len(texts)), fact.sources) for fact in ranking.asked], dtype=float)
        return {"perfect": relevant, "inverse": -relevant, "constant": 0 * relevant}[kind]

    return Method(kind, search=search)


@pytest.mark.parametrize("kind", ["perfect", "inverse", "constant"])
def test_measures_of_rigged_scores_end_to_end(kind, models, ranking, tmp_path):
    method = rigged(kind, ranking)
    cache = Cache(tmp_path / "scores", {})
    (result,) = measure(method, compute([method], models, ranking, cache)[method.key], ranking)
    sizes = np.array([len(rows) for rows in ranking.candidates])
    sources = np.array([ranking.relevant(q).sum() for q in range(len(sizes))])
    assert (sources == 2).all() and (sizes > 4).all()
    if kind == "perfect":  # tied first places both have the worse rank, 2
        assert (result.values == [1 / 2, 1, 1]).all()
    else:
        assert result.values[:, 0] == pytest.approx(1 / sizes)
        assert (result.values[:, 1:] == (sizes <= 10)[:, None]).all()


def gigabytes_of_a_vector(models):
    """While it is made."""
    return 4 * build_scorer("gdp", *(models.stage(which) for which in ("pretrained", "finetuned"))).cost().making / 1e9


def influences(*dampings):
    return methods_named(["multi-stage", "gdp"], Options(dampings=dampings))


def restricted(stage, kind):
    names = [module.name for module in stage.side.tracked if kind in ("all", kind_of(module.name))]
    return replace(stage, side=stage.side.restricted(names))


@pytest.mark.parametrize("normalize", ["none", "unit"])
@pytest.mark.parametrize("modules", ["all", "mlp", "attention"])
def test_readings_of_the_shared_pass_equal_scorers_of_their_own(modules, normalize, models, ranking, tmp_path):
    methods = influences("1e-3", "0.1mean", "auto")
    size = gigabytes_of_a_vector(models)
    # four vectors at a time, where a method has six: every method is cut
    done = compute(methods, models, ranking, score_cache(tmp_path, models, ranking), 4.5 * size)
    queries, candidates = models.queries(ranking.asked), models.sentences(ranking.rows)
    for method in methods:
        damping = None if not method.damping else damping_of(method.settings["damping"])
        stages = [restricted(models.fitted(which, tau=True), modules) for which in ("pretrained", "finetuned")]
        scorer = build_scorer("gdp" if damping is None else "multi-stage", *stages, damping, normalize=normalize)
        expected = ranking.own(scorer.score(queries, candidates).values, range(len(ranking.asked)))
        found = {(m, unit): flat for m, unit, flat in readings(done[method.key])}
        assert len(found) == 6
        scale = np.abs(expected).max()
        assert found[modules, normalize == "unit"] / scale == pytest.approx(expected / scale, abs=2e-5)


def test_every_method_runs_and_orders_what_it_should(models, ranking, tmp_path):
    options = Options(dampings=("0.1mean",), cg=CGOptions(iterations=1, examples=8))
    names = [
        "alpha",
        "single-stage",
        "single-stage-finetuned",
        "source",
        "cg",
        "no-hop",
        "measurements",
        "whole-heads",
        "unembedding",
        "halves",
        "noise",
    ]
    names += ["representation", "trak", "logra", "random"]
    methods = methods_named(names, options)
    done = compute(methods, models, ranking, score_cache(tmp_path, models, ranking))
    pairs = sum(len(rows) for rows in ranking.candidates)
    for method in methods:
        found = list(readings(done[method.key]))
        few = method.family == CG
        assert facts_of(method, ranking) == ([0, 3] if few else [0, 1, 2, 3, 4, 5])
        expected = len(ranking.candidates[0]) + len(ranking.candidates[3]) if few else pairs
        assert all(len(flat) == expected and np.isfinite(flat).all() and np.ptp(flat) > 0 for *_, flat in found)
        # CG's modules mix, so MLP alone is not a part of its sum
        several = 4 if "unembedding" in method.name else 6
        single = method.family.startswith(("representation", "TRAK", "random")) or "halves" in method.family
        assert len(found) == (2 if few or method.family == "LoGra" else 1 if single else several)
    assert len({flat.tobytes() for m in methods for *_, flat in readings(done[m.key])}) == sum(
        len(list(readings(done[m.key]))) for m in methods
    )


def test_cg_equals_its_own_scorer_on_few_facts(models, ranking, tmp_path):
    (method,) = methods_named(["cg"], Options(cg=CGOptions(("1.0",), 1, 8)))
    done = compute([method], models, ranking, score_cache(tmp_path, models, ranking))
    scorer = method.build(models)
    asked = [ranking.asked[0], ranking.asked[3]]
    values = scorer.score(models.queries(asked), models.sentences(ranking.rows)).values
    expected = ranking.own(values, [0, 3])
    (_, _, plain), _ = readings(done[method.key])
    assert done[method.key]["residual"] > 0
    assert plain == pytest.approx(expected, rel=1e-3, abs=1e-4 * float(np.abs(expected).max()))


def test_halves_equal_their_own_scorer_however_few_queries_fit(models, ranking, tmp_path):
    (method,) = methods_named(["halves"], Options())
    cost = method.build(models).cost()
    done = compute([method], models, ranking, score_cache(tmp_path, models, ranking), 4 * 4.5 * cost.making / 1e9)
    stages = [models.fitted(which, "unembedding", tau=True) for which in ("pretrained", "finetuned")]
    own = build_scorer("multi-stage", *stages, Damping(alpha="auto"), halves=Halves(1, 0.3))
    values = own.score(models.queries(ranking.asked), models.sentences(ranking.rows)).values
    expected = ranking.own(values, range(len(ranking.asked)))
    ((modules, unit, found),) = readings(done[method.key])
    scale = np.abs(expected).max()
    assert (modules, unit) == ("all", False) and found / scale == pytest.approx(expected / scale, abs=2e-5)


@pytest.mark.parametrize(("place", "step"), [(0, 0.0), (1, 0.3)])
def test_noise_is_asked_with_factors_of_either_models_and_without(models, ranking, tmp_path, place, step):
    methods = methods_named(["noise"], Options())[3 * place :][:3]
    done = compute(methods, models, ranking, score_cache(tmp_path, models, ranking))
    first, last = (models.fitted(which, "unembedding", tau=True) for which in ("pretrained", "finetuned"))
    changes = foretold(first.side, first.factors, first.tau, first.batches, Halves(4, step, noise=1.0))
    expected = dict.fromkeys(("theirs", "own", "none"), 0.0)
    settings = FitSettings(label_samples=Options().fit.label_samples, seed=Options().fit.seed)
    for number in range(4):
        change = of_half(changes, number)
        moved = [replace(s, side=moved_side(s.side, change)) for s in (first, last)]
        fitted = [
            replace(s, factors=fit(s.side.model, s.side.tracked, s.side.objective, s.batches,
                                   tmp_path / f"{number}-{place}", settings).load_all())
            for place, s in enumerate(moved)
        ]  # fmt: skip
        for key, stages, method in (
            ("theirs", moved, "multi-stage"),
            ("own", fitted, "multi-stage"),
            ("none", moved, "gdp"),
        ):
            scorer = build_scorer(method, *stages, Damping(alpha="auto"))
            values = scorer.score(models.queries(ranking.asked), models.sentences(ranking.rows)).values
            expected[key] = expected[key] + ranking.own(values, range(len(ranking.asked))) / 4
    for method, key in zip(methods, expected, strict=True):
        ((modules, unit, found),) = readings(done[method.key])
        scale = np.abs(expected[key]).max()
        assert (modules, unit) == ("all", False) and found / scale == pytest.approx(expected[key] / scale, abs=2e-5)


def test_a_finished_method_is_not_computed_again(models, ranking, tmp_path, monkeypatch):
    methods = [*influences("1e-3", "1e-2"), rigged("perfect", ranking)]
    size = gigabytes_of_a_vector(models)
    cache = score_cache(tmp_path, models, ranking)
    passes = []

    def interrupted(*arguments):
        passes.append(1)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return stacked.score_parts(*arguments)

    monkeypatch.setattr(running, "score_parts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compute(methods, models, ranking, cache, 4.5 * size)  # 18 vectors: five passes
    kept = [cache.has(part_name(method, ranking)) for method in methods]
    assert kept == [True, False, False, True]  # two passes of four finish one method of six
    first = cache.folder / f"{part_name(methods[0], ranking)}.npz"
    written = first.stat().st_mtime_ns
    done = compute(methods, models, ranking, cache, 1.0)
    assert len(passes) == 4  # the other two in one pass
    assert written == first.stat().st_mtime_ns
    compute(methods, models, ranking, cache, 1.0)
    assert len(passes) == 4
    fresh = compute(methods, models, ranking, Cache(tmp_path / "other", {}), 1.0)
    for key, arrays in done.items():
        for part in set(arrays) - {"seconds"}:
            scale = float(np.abs(arrays[part]).max())
            assert arrays[part] == pytest.approx(fresh[key][part], rel=1e-4, abs=1e-6 * scale)


def test_scores_of_other_settings_or_candidates_are_not_believed(models, ranking, tmp_path):
    method = rigged("perfect", ranking)
    score_cache(tmp_path, models, ranking).save(part_name(method, ranking), {"seconds": np.array(1.0)})
    assert not score_cache(tmp_path, models, ranking).has(part_name(replace(method, settings={"damping": 2}), ranking))
    other = replace(ranking, candidates=ranking.candidates[::-1])
    assert not score_cache(tmp_path, models, other).has(part_name(method, ranking))
    assert score_cache(tmp_path, models, ranking).has(part_name(method, ranking))


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


def test_methods_that_need_an_unknown_training_are_left_out_by_name(pair, caplog):
    methods = methods_named(["multi-stage", "alpha", "source", "gdp"], Options(dampings=("0.1", "auto")))
    assert possible(methods, pair) == (methods, [])
    unknown = replace(pair, pretrained="some/model")
    kept, left_out = possible(methods, unknown)
    assert [m.family for m in kept] == ["multi-stage EK-FAC", "multi-stage GDP"] and len(left_out) == 3
    assert "some/model" in caplog.text and all(name in caplog.text for name in left_out)
    with pytest.raises(MsifError, match="no method is left"):
        possible([m for m in methods if m.name in left_out], unknown)
