"""What a run leaves for its report: what each stage was damped by, self-influence, parts by the answer's tokens."""

import json

import numpy as np
import pytest
from worlds import ALL, FACTS, QUERY, influence

import msif
from msif.attribution.methods import SOLVERS
from msif.attribution.self_influence import quadratic
from msif.candidates.bm25 import BM25, bm25_scores
from msif.curvature.filters import DampedInverse
from msif.curvature.preconditioners import EKFAC
from msif.data.batching import TokenBatches
from msif.data.corpus import as_corpus
from msif.reporting.factors import factors_of
from msif.reporting.payload import payload
from msif.reporting.runs import read_run
from msif.reporting.truth import Truth

ASKED = [("Where was Ada born?", " Linz")]


def stages_of(world, **options):
    pairs = ((world.base, "corpus.jsonl", world.base_factors), (world.tuned, "pairs.jsonl", world.tuned_factors))
    return [msif.Stage(model, world.folder / data, factors, **options) for model, data, factors in pairs]


def means_of(factors):
    """The mean of each block's Λ, by the block's name."""
    store = msif.FactorStore.open(factors)
    found = {}
    for module in store.tracked:
        means = store[module.name].Lambda.double().mean((1, 2)).tolist()
        labels = [""] if len(means) == 1 else [f":{block.label}" for block in module.blocks]
        found |= {module.name + label: mean for label, mean in zip(labels, means, strict=True)}
    return found


def test_damping_by_the_training_is_kept_by_block_and_drawn(world, tmp_path):
    first, last = stages_of(world, learning_rate_sum=8.0)
    result = msif.attribute([first, last], ASKED, "all", damping=msif.Damping("auto"))
    pretraining, finetuning = result.provenance["stages"]
    assert (pretraining["stage"], finetuning["stage"]) == ("pre-training", "fine-tuning")
    assert pretraining["factors"] == str(world.base_factors)
    for stage, found, kind in ((first, pretraining, "damping"), (last, finetuning, "alpha")):
        expected = [1 / tau for values in stage.tau.values() for tau in values.tolist()]
        assert list(found["scales"][kind].values()) == pytest.approx(expected, rel=1e-5)
        assert found["scales"][kind].keys() == means_of(stage.factors).keys()
    assert set(pretraining["scales"]["alpha"].values()) == set(finetuning["scales"]["damping"].values()) == {0.0}
    for drawn in factors_of(read_run(result.save(tmp_path / "out"))):
        assert drawn["spectrum"]["shift"]["spread"][1] == pytest.approx(np.log10(1 / 8))
        assert drawn["scale"] == "λ + α" and "0.125" in drawn["damping"]


@pytest.mark.parametrize("kind", ["ekfac", "ekfac-cg"])
def test_damping_by_the_mean_of_a_block_is_that_of_every_inverse(world, tmp_path, kind):
    flags = [*world.pair, *world.factors, *QUERY, *ALL, "--ihvp", kind, "--alpha", 0.25]
    flags += ["--ihvp-iterations", 1] if kind in SOLVERS else []
    assert influence(*flags, "--damping-scale", 0.5, "--output", tmp_path / "out") == 0
    stages = json.loads((tmp_path / "out" / "manifest.json").read_text())["stages"]
    for found, alpha in zip(stages, (0.0, 0.25), strict=True):
        expected = {block: pytest.approx(0.5 * mean, rel=1e-4) for block, mean in means_of(found["factors"]).items()}
        assert found["scales"]["damping"] == expected and set(found["scales"]["alpha"].values()) == {alpha}


def test_of_source_it_is_tau_and_of_plain_gradients_nothing(world, tmp_path):
    stages = stages_of(world, learning_rate_sum=8.0)
    result = msif.attribute(stages, ASKED, "all", method="source")
    assert [set(one["scales"]["tau"].values()) for one in result.provenance["stages"]] == [{8.0}, {8.0}]
    drawn = factors_of(read_run(result.save(tmp_path / "out")))[1]
    assert drawn["spectrum"]["shift"]["spread"][0] == pytest.approx(np.log10(1 / 8)) and drawn["scale"] == "1/τ"
    assert msif.attribute(stages, ASKED, "all", method="gdp").provenance["stages"] == []


def test_what_is_shown_has_the_self_influence_of_its_row(world, tmp_path):
    first, last = stages_of(world)
    result = msif.attribute([first, last], [*ASKED, ("What is late?", " It")], "all", top_k=1)
    inverse = EKFAC(first.store, DampedInverse())
    shared = {module.name for module in last.tracked}
    expected = {}
    for number, text in enumerate(FACTS):
        batches = TokenBatches(as_corpus([text]), first.format, first.loaded.tokenizer, 100)
        expected[number] = quadratic(first.side.restricted(shared), batches, [inverse]).item()
    assert {one.candidate_id for one in result.shown} < {f"doc-{number}" for number in expected}
    for one in result.shown:
        assert one.self_influence == pytest.approx(expected[int(one.candidate_id[4:])], rel=1e-4)
    table = result.to_pandas()
    known = table[table.self_influence.notna()]
    assert set(known.candidate_id) == {one.candidate_id for one in result.shown}
    page = read_run(result.save(tmp_path / "out"))
    found = payload([page], Truth())
    values = {one.candidate_id: one.self_influence for one in result.shown}
    assert found.index["runs"][0]["self"] == pytest.approx(np.median(list(values.values())))
    assert [entry["self_influence"] for entry in found.queries[0]["runs"][0]["entries"]] == [
        one.self_influence for one in result.shown if one.query_id == "0"
    ]


def test_a_solver_has_no_self_influence_and_the_page_says_so(world, tmp_path):
    result = msif.attribute(stages_of(world), ASKED, "all", ihvp=msif.IHVP("ekfac-cg", iterations=1))
    assert {one.self_influence for one in result.shown} == {None} and not any(one.by_answer for one in result.shown)
    assert "a run of the solver" in result.told[0]["unsplit"]
    assert payload([read_run(result.save(tmp_path / "out"))], Truth()).queries[0]["runs"][0]["unsplit"]
    assert "each document would take a run of the solver." in (result.save(tmp_path / "out") / "page.html").read_text()


def test_words_are_looked_up_in_one_pass_for_candidates_prior_and_report(world, monkeypatch):
    made, plain = [], BM25.__init__
    monkeypatch.setattr(BM25, "__init__", lambda *given, **named: made.append(plain(*given, **named)))
    corpus = [*FACTS[:3], "", *FACTS[3:]]
    result = msif.attribute(stages_of(world)[0], ASKED, "bm25:4", corpus=corpus, prior="bm25:0.5", top_k=4)
    assert len(made) == 1
    (words,) = bm25_scores(["Where was Ada born? Linz"], corpus, progress=False)
    best = np.argsort(-words, kind="stable")
    best = best[best != 3][:4]
    assert sorted(result.scores()) == sorted(best.tolist())
    prior = dict(zip(result.rankings[0].rows.tolist(), result.rankings[0].prior.tolist(), strict=True))
    assert [prior[row] for row in best] == pytest.approx((0.5 * words[best] / np.std(words[best])).tolist())
    told = {one.candidate_id: one.lexical for one in result.shown}
    assert told[result.ids[0]]["rank"] == 1 and result.told[0]["documents"] == 9


@pytest.mark.parametrize("options", [{"query_rank": 2}, {"method": "source"}, {"method": "cosine"}], ids=str)
def test_parts_by_the_answers_tokens_sum_to_the_whole(world, options):
    result = msif.attribute(stages_of(world, learning_rate_sum=8.0), ASKED, "all", top_k=2, **options)
    assert result.shown and result.told[0]["unsplit"] is None
    for one in result.shown:
        parts = np.array(one.by_answer)
        assert parts.shape == (len(" Linz"), len(one.tokens))
        largest = max(abs(part) for _, part in one.tokens)
        assert parts.sum(0) == pytest.approx([part for _, part in one.tokens], abs=2e-3 * largest)


def test_an_answer_of_many_tokens_is_not_split_and_says_so(world):
    asked = [("Where was Ada born?", " Linz" * 7), ("Where?", " Graz"), ("Who?", "I")]
    result = msif.attribute(stages_of(world)[0], asked, "all", top_k=1)
    assert [one["unsplit"] for one in result.told] == [
        "the answer has 35 tokens, and those of up to 32 are split",
        None,
        None,
    ]
    assert [bool(one.by_answer) for one in result.shown] == [False, False, True, True, False, False]


def test_a_run_knows_its_documents_by_what_they_say(world, tmp_path):
    """Row numbers of two halves are alike, and so are those of a corpus whose fields are called otherwise."""
    folders = {}
    for name, texts, field in (
        *(("first", FACTS[:4], "text"), ("again", FACTS[:4], "body")),
        *(("second", FACTS[4:8], "text"), ("fewer", FACTS[:3], "text")),
    ):
        rows = [{field: text} for text in texts]
        result = msif.attribute(
            stages_of(world), ASKED, "all", corpus=rows, fields={"text_field": field}, method="gdp", top_k=1
        )
        folders[name] = result.save(tmp_path / name)
    found = {name: read_run(folder).manifest["documents"] for name, folder in folders.items()}
    assert found["first"] == found["again"] and len(set(found.values())) == 3
    msif.average_runs([folders["first"], folders["again"]], tmp_path / "mean")
    with pytest.raises(msif.MsifError, match="same ids and other texts"):
        msif.average_runs([folders["first"], folders["second"]], tmp_path / "halves")
