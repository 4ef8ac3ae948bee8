"""The digits experiment in its small form: what it must show, what it leaves, that it goes on where it was."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from experiments.common.cache import Cache
from experiments.common.judging import Judge
from experiments.common.parallel import spread
from experiments.digits import __main__ as command
from experiments.digits import methods, nearby
from experiments.digits.engine import stacked, train
from experiments.digits.exact import Exact, ExactCurvature
from experiments.digits.halved import scaled_apart
from experiments.digits.heads import WholeNetworkScorer
from experiments.digits.images import load_parts
from experiments.digits.members import Members, on_everything, on_halves, segment_middles
from experiments.digits.methods import _mean_of_roots, _mean_of_steps, all_methods, in_segments
from experiments.digits.network import new_networks
from experiments.digits.report import told_by_retraining
from experiments.digits.settings import SMALL, Schedule, Settings
from experiments.digits.truth import losses_on_halves
from msif.attribution.damping import Damping
from msif.attribution.halves import Halves
from msif.attribution.scorers import EnsembleScorer
from msif.attribution.stages import build_scorer
from msif.curvature.filters import DampedInverse
from msif.errors import MsifError
from msif.evaluation.datamodelling import linear_datamodelling_score
from msif.models.training import natural_tau

TABLES = ("lds", "differences", "ensembles", "halves", "sweep", "counterfactual", "adam", "adam-sweep")
MARGIN = 0.1
NATURAL = "λ = 1/ηK, α = 1/ηK"


def shorter(settings):
    """Training by Adam in a third of the steps."""
    stages = {"pretrain": settings.pretrain, "finetune": settings.finetune}
    return replace(settings, **{name: replace(stage, steps=stage.steps // 3) for name, stage in stages.items()})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of a few dampings, and of halves few methods: all of them take minutes, and only their values differ."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "SWEEP", (1e-3, 1e-2))
        patch.setattr(methods, "SCALES", (0.1, 1.0))
        patch.setattr(methods, "PARTS", (0.5,))
        kept = [row for row in methods.HALVED if "EK-FAC" not in row[0] and row[1] in ("", methods.SOURCE)]
        patch.setattr(methods, "HALVED", kept)
        with_adam = Settings.with_adam
        patch.setattr(Settings, "with_adam", lambda settings: shorter(with_adam(settings)))
        command.main(["--small", "--output", str(folder)])
        yield folder


def scores_of(run, member, slug):
    """The file of a family's scores, whose name ends with a hash of the family's methods."""
    (path,) = (run / "descent" / "members" / "scores").glob(f"{member}-{slug}-{8 * '?'}.npz")
    return path


def rows(run, name):
    return json.loads((run / "report" / f"{name}.json").read_text())["tables"][0]["rows"]


def test_multi_stage_influence_beats_the_dot_product_and_what_it_is_made_of(run):
    averaged = {(row["method"], row["λ_pt"], row["α"]): row["averaged"] for row in rows(run, "sweep")}
    single = {(row["method"], row["λ_pt"], row["α"]): row["1 model"] for row in rows(run, "sweep")}
    natural = ("multi-stage EK-FAC", "1/ηK", "1/ηK")
    for scores in (averaged, single):
        assert scores[natural] > scores["gradient dot product", "", ""] + MARGIN
        assert scores["multi-stage exact", "1/ηK", "1/ηK"] > scores["gradient dot product", "", ""] + 2 * MARGIN
        assert scores[natural] > scores["multi-stage EK-FAC", "1/ηK", "no hop"]
    # the same systems solved by the library and by a dense decomposition
    dense, solved = (
        np.load(scores_of(run, "00", slug)) for slug in ("multi-stage-exact", "multi-stage-ek-fac-preconditioned-cg")
    )
    for shown in ("1/ηK", "0.5/ηK"):
        exact = dense[f"multi-stage exact, λ = {shown}, α = {shown}"]
        by_cg = solved[f"multi-stage EK-FAC-preconditioned CG, λ = {shown}, α = {shown}"]
        assert np.linalg.norm(by_cg - exact) < 0.05 * np.linalg.norm(exact)


def test_it_leaves_tables_and_plots(run):
    for name in TABLES:
        assert (run / "report" / f"{name}.md").read_text().startswith("**")
        assert json.loads((run / "report" / f"{name}.json").read_text())["configuration"]["pretraining"] == 120
    for name in ("damping", "ensembles", "counterfactual"):
        content = (run / "report" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) < 200_000
    assert {row["removed: top images by"] for row in rows(run, "counterfactual")} >= {
        "random images",
        "gradient dot product",
        "multi-stage EK-FAC",
        "opponents by multi-stage EK-FAC",
    }


def test_it_goes_on_where_it_was_and_refuses_other_settings(run):
    lds = (run / "report" / "lds.json").read_text()
    kept = {path: path.stat().st_mtime_ns for path in run.rglob("*.npz")}
    lost = scores_of(run, "01", "trak")
    lost.unlink()
    command.main(["--small", "--output", str(run)])
    assert (run / "report" / "lds.json").read_text() == lds
    changed = {path for path in run.rglob("*.npz") if path.stat().st_mtime_ns != kept[path]}
    assert changed == {lost}
    with pytest.raises(MsifError, match="--overwrite"):
        command.main(["--small", "--output", str(run), "--halves", "30"])


@pytest.mark.parametrize("flags", [["--members", "0"], ["--processes", "0"], ["--device", "cuda"]])
def test_bad_numbers_are_refused_in_a_sentence(flags, tmp_path):
    with pytest.raises(MsifError):
        command.main(["--small", "--output", str(tmp_path / "none"), *flags])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "flags", [["--networks", "0"], ["--networks", "3"], ["--processes", "0"], ["--device", "cuda"]]
)
def test_bad_numbers_of_networks_are_refused_before_any_work(flags, tmp_path):
    with pytest.raises(MsifError):
        nearby.main(["--small", "--output", str(tmp_path / "none"), *flags])
    assert not (tmp_path / "none").exists()


def test_averages_are_the_librarys_ensembles(run):
    parts = load_parts(SMALL)
    cache = cache_of(run)
    members = Members(SMALL, parts, cache, on_everything(SMALL))
    method = next(m for m in all_methods() if m.name == f"multi-stage EK-FAC, {NATURAL}")
    ensemble = EnsembleScorer([method.build(member) for member in members])
    scores = ensemble.score([parts.queries], [parts.pretraining]).values
    masks, losses = losses_on_halves(SMALL, parts, cache)
    expected = linear_datamodelling_score(scores, masks, losses.mean(1)).mean()
    found = {(row["method"], row["λ_pt"], row["α"]): row["averaged"] for row in rows(run, "sweep")}
    assert found["multi-stage EK-FAC", "1/ηK", "1/ηK"] == pytest.approx(expected, abs=1e-4)
    # one checkpoint for each segment, in the order of training
    member = members[0]
    assert segment_middles(Schedule(0.5, 800), 4) == [100, 300, 500, 700]
    assert [len(member.pretraining), len(member.finetuning)] == [2, 1]
    segments = in_segments(member, lambda checkpoint, filter: (checkpoint, filter)).scorers
    stages = [[(stage[0], type(stage[1]).__name__) for stage in scorer.preconditioners] for scorer in segments]
    first, second, last = (*member.pretraining, member.finetuning[0])
    assert stages == [
        [(first, "Accumulation"), (second, "Decay"), (last, "Decay")],
        [(second, "Accumulation"), (last, "Decay")],
    ]


def test_trainings_on_halves_see_their_half_alone(run):
    parts, group = load_parts(SMALL), on_halves(SMALL)
    assert (group.seen[0] == ~group.seen[1]).all() and group.seen[0].sum() == 60
    assert not {*range(group.first_seed, group.first_seed + 2)} & {SMALL.first_member, SMALL.first_member + 1}
    cache = cache_of(run)
    member = Members(SMALL, parts, cache, group)[1]
    rows = torch.from_numpy(np.flatnonzero(group.seen[1]))
    images = member.pretrained.images
    assert torch.equal(images.x, parts.pretraining.x[rows]) and torch.equal(images.y, parts.pretraining.y[rows])
    assert images.indices.tolist() == list(range(60)) and len(member.finetuned.images) == SMALL.finetuning
    first, _ = new_networks(SMALL.first_halved + 1)
    alone = train(stacked([first]), images, torch.arange(60)[None], SMALL.pretrain).layers
    for a, b in zip(alone, stacked([member.pretrained.network]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_curvature_of_held_out_images_is_pretrainings_alone(run):
    parts = load_parts(SMALL)
    member = Members(SMALL, parts, cache_of(run), on_everything(SMALL))[0]
    [first, last] = {m.damping: m.build(member).preconditioners for m in all_methods() if methods.HELD_OUT in m.family}[
        "1/ηK"
    ]
    torch.testing.assert_close(first.curvature.sigma, ExactCurvature(member.pretrained.body, parts.held_out).sigma)
    torch.testing.assert_close(last.curvature.sigma, member.finetuned.exact.sigma)
    assert (first.filter, last.filter) == (DampedInverse(1 / 60), DampedInverse(0.0, alpha=1 / 10))
    [half] = [m for m in all_methods() if m.name == "multi-stage exact, λ = 0.5/ηK, α = 0.5/ηK"]
    filters = [stage.filter for stage in half.build(member).preconditioners]
    assert filters == [DampedInverse(0.5 / 60), DampedInverse(0.0, alpha=0.5 / 10)]


def test_scores_of_images_that_were_seen_and_that_were_not_are_scaled_apart(run):
    scores = np.array([[[3.0, 1.0, 40.0, 20.0], [2.0, 2.0, 0.0, 6.0]]])
    seen = np.array([[True, True, False, False]])
    scores[0, 1, 1] = 6
    np.testing.assert_allclose(scaled_apart(scores, seen), [[[3, 1, 4, 2], [1, 3, 0, 2]]])
    found = {row["method"]: row for row in rows(run, "halves")}
    group, judge = on_halves(SMALL), Judge(*losses_on_halves(SMALL, load_parts(SMALL), cache_of(run)))
    assert len(found) == 3
    for slug, method in (("multi-stage-exact", "multi-stage exact"), ("gradient-dot-product", "gradient dot product")):
        files = [next((run / "descent" / "halved" / "scores").glob(f"{n:02d}-{slug}-{8 * '?'}.npz")) for n in (0, 1)]
        kept = np.stack([next(iter(np.load(file).values())) for file in files])
        assert found[method]["all, not scaled"] == pytest.approx(judge.score(kept.mean(0)), abs=1e-6)
        apart = scaled_apart(kept, group.seen).mean(0)
        assert found[method]["2 halves"] == pytest.approx(judge.score(apart), abs=1e-6)


def test_what_retraining_itself_tells():
    draw = np.random.default_rng(0)
    truth = draw.normal(size=(30, 1, 2))
    losses = np.concatenate([np.repeat(truth, 2, axis=1), truth, -truth], axis=1)
    assert told_by_retraining(losses, 1) == pytest.approx(0)  # one seed agrees, the other says the opposite
    assert told_by_retraining(losses[:, :3], 1) == pytest.approx(1)
    assert told_by_retraining(losses, 3) is None and told_by_retraining(losses[:, :1], 1) is None
    noisy = truth + draw.normal(size=(30, 12, 2))
    assert told_by_retraining(noisy, 1) < told_by_retraining(noisy, 6)
    by_hand = [spearmanr(noisy[:, 6 + seed, q], noisy[:, :6, q].mean(1)).statistic for seed in range(6) for q in (0, 1)]
    assert told_by_retraining(noisy, 1) == pytest.approx(np.mean(by_hand))


def cache_of(run):
    return Cache(run / "descent", json.loads((run / "descent" / "settings.json").read_text()))


def test_adams_moments_are_read_by_the_library(run):
    settings = SMALL.with_adam()
    cache = Cache(run / "adam", json.loads((run / "adam" / "settings.json").read_text()))
    checkpoint = Members(settings, load_parts(settings), cache, on_everything(settings))[1].pretrained
    tracked = checkpoint.side.tracked
    tau = natural_tau(checkpoint.folder, checkpoint.network, tracked, settings.pretrain.rate_sum)
    for name, root in checkpoint.adam_roots().items():
        expected = settings.pretrain.rate_sum / root.mean()
        assert float(tau[name]) == pytest.approx(float(expected), rel=1e-4)
    # of the two means over a block's dampings or times, the first is the library's
    dampings, times = _mean_of_roots(checkpoint), _mean_of_steps(checkpoint)
    assert dampings.keys() == times.keys() == tau.keys()
    for name, root in checkpoint.adam_roots().items():
        assert float(dampings[name] * tau[name]) == pytest.approx(1)
        assert float(times[name]) == pytest.approx(1 / float((settings.pretrain.rate_sum / root).mean()), rel=1e-4)
        assert times[name] < dampings[name]


def test_work_is_spread_over_processes_in_its_order():
    assert spread(math.sqrt, [9, 4, 1], 2, "roots") == spread(math.sqrt, [9, 4, 1], 1, "roots") == [3, 2, 1]


def test_networks_nearby_are_asked_with_their_own_curvature(run, monkeypatch):
    monkeypatch.setattr(nearby, "PAIRS", 1)
    command_line = ["--small", "--networks", "2", "--output", str(run)]
    nearby.main(command_line)
    found = rows(run, "nearby")
    assert [(row["step"], row["noise"]) for row in found] == [
        (None, None), (3.0, 0.5), (None, None), (3.0, None), (None, 0.5), (3.0, 0.5)
    ]  # fmt: skip
    parts, cache = load_parts(SMALL), cache_of(run)
    member = Members(SMALL, parts, cache, on_everything(SMALL))[0]
    judge = Judge(*losses_on_halves(SMALL, parts, cache))
    # at the networks themselves both are methods of the main experiment
    for row, family in ((found[0], f"multi-stage {methods.CG}"), (found[2], "multi-stage exact, heads counted")):
        method = next(m for m in all_methods() if (m.family, m.damping) == (family, "1/ηK"))
        scores = method.build(member).score([parts.queries], [parts.pretraining]).values
        assert row["not scaled"] == pytest.approx(judge.score(scores), abs=1e-3)
    # the library's own mean over networks, and what it is of
    both = Halves(2, 3.0, noise=0.5)
    each = np.stack(list(nearby.by_solver(member, parts, both)))
    asked = build_scorer("multi-stage", member.pretrained.stage, member.finetuned.stage, Damping("auto"), nearby.SOLVER,
                         halves=both)  # fmt: skip
    np.testing.assert_allclose(each.mean(0), asked.score([parts.queries], [parts.pretraining]).values, rtol=1e-4,
                               atol=1e-9)  # fmt: skip
    assert found[1]["not scaled"] == pytest.approx(judge.score(each.mean(0)), abs=1e-4)
    scaled = (each / each.std(-1, keepdims=True)).mean(0)
    assert found[1]["2 networks, 95 %"].startswith(f"{judge.score(scaled):.3f} [")
    # the exact matrices are of the moved networks: of both stages' bodies, and of the head of the first alone
    exact = list(nearby.by_exact(member, parts, both))
    for (first, last), scores in zip(nearby._moved(member, both), exact, strict=True):
        before, after = ([*side.model.linear()] for side in (member.pretrained.side, first))
        tuned, moved = ([*side.model.linear()] for side in (member.finetuned.side, last))
        for place in range(2):
            change = after[place].weight - before[place].weight
            assert change.norm() > 0.05 * before[place].weight.norm()
            torch.testing.assert_close(moved[place].weight, tuned[place].weight + change)
        assert torch.equal(moved[2].weight, tuned[2].weight) and not torch.equal(after[2].weight, before[2].weight)
        curvatures = ExactCurvature(first, parts.pretraining), ExactCurvature(last, parts.finetuning)
        stages = [Exact(*pair) for pair in zip(curvatures, methods.natural_filters(member), strict=True)]
        one = WholeNetworkScorer(last, first, *stages).score([parts.queries], [parts.pretraining]).values
        np.testing.assert_allclose(scores, one, rtol=1e-4, atol=1e-8)
    kept = {path: path.stat().st_mtime_ns for path in run.rglob("nearby/*.npz")}
    nearby.main(command_line)
    assert len(kept) == 6 and kept == {path: path.stat().st_mtime_ns for path in run.rglob("nearby/*.npz")}
