"""Trainings without documents differ by these documents alone, are kept, and agree with what scores say."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.common import training
from experiments.common.cache import Cache
from experiments.common.training import ModelSize, Schedule, build_tokenizer, completion
from experiments.counterfactual import __main__ as command
from experiments.counterfactual.setting import FactSizes, fact_setting
from experiments.facts.facts import Fact, FactData, Sentence
from experiments.retraining import methods, rounds, trainings
from experiments.retraining.bags import Bag, bagged_scores, bags_of
from experiments.retraining.halves import losses_on_halves
from experiments.retraining.members import LABEL_SAMPLES, make_member
from experiments.retraining.methods import DEFAULT_DAMPING, FINETUNINGS, all_methods, member_scores
from experiments.retraining.plots import plot_all
from experiments.retraining.removal import OPPONENTS, RANDOM, TAUGHT, measure_removals, removal_orders
from experiments.retraining.report import (
    bag_table,
    ceiling_table,
    ensemble_table,
    lds_table,
    proponent_table,
    query_table,
    removal_table,
)
from experiments.retraining.settings import Recipe, Sizes
from experiments.retraining.study import (
    ASKED_AGAIN,
    MEAN,
    MEAN_OF_HALVES,
    REFERENCE,
    Study,
    _bagged,
    _of_query,
    asked_again,
)
from experiments.retraining.trainings import Retrainings, Training
from experiments.retraining.two_stage import Asked, LanguageHead, TwoStage, _batches, measured_losses
from msif.attribution.damping import Damping
from msif.curvature.filters import DampedInverse, ProximalHop
from msif.curvature.fit import FitSettings, fit
from msif.errors import MsifError

NAMES = ["Ada", "Bob", "Cleo", "Dan", "Eve", "Finn"]
COLOURS = ["red", "blue", "red", "blue", "green", "green"]
RECIPE = Recipe(300, ModelSize(1, 32, 2, 64), Schedule(8, 1e-2, 4), Schedule(4, 3e-3, 2))

QUICK = replace(RECIPE, pretraining=Schedule(1, 1e-2, 8), finetuning=Schedule(1, 3e-3, 4))


def sentences() -> list[str]:
    """Three of each name; those of Ada are rows 0 to 2."""
    forms = ("{} likes the colour {} .", "It is said that {} likes {} .", "Everybody knows {} to like {} .")
    return [form.format(n, c) for n, c in zip(NAMES, COLOURS, strict=True) for form in forms]


@pytest.fixture(scope="module")
def world() -> TwoStage:
    texts = sentences()
    tokenizer = build_tokenizer(texts + texts, 300)
    tuned = [completion(tokenizer, f"{n} likes", f" {c}") for n, c in zip(NAMES[1:], COLOURS[1:], strict=True)]
    return TwoStage(tokenizer, texts, tuned, RECIPE, LanguageHead(), asked(tokenizer, 2), asked(tokenizer, 3))


def asked(tokenizer, number: int) -> Asked:
    pairs = [(f"{name} likes", f" {colour}") for name, colour in zip(NAMES[:number], COLOURS, strict=False)]
    examples = [completion(tokenizer, *pair, end=False) for pair in pairs]
    return Asked(examples, [a + b for a, b in pairs], NAMES[:number], COLOURS[:number])


@pytest.fixture
def retrainings(world: TwoStage, tmp_path) -> Retrainings:
    return Retrainings(world, "finetuned", range(2), Cache(tmp_path / "cache", {}))


def weights(world: TwoStage, seed: int, left_out=(), order: int = 0) -> torch.Tensor:
    _, finetuned = world.train(seed, left_out, order)
    return torch.cat([p.detach().flatten() for p in finetuned.model.parameters()])


def test_leaving_nothing_out_changes_nothing_and_the_seed_decides(world: TwoStage) -> None:
    assert torch.equal(weights(world, 3), weights(world, 3, []))
    assert not torch.equal(weights(world, 3), weights(world, 4))
    assert not torch.equal(weights(world, 3), weights(world, 3, [5]))


def test_another_order_starts_from_the_same_weights(world: TwoStage) -> None:
    """And has the same documents in other batches, on every epoch."""
    still = replace(world, recipe=replace(RECIPE, pretraining=Schedule(1, 0.0, 4), finetuning=Schedule(1, 0.0, 2)))
    assert torch.equal(weights(still, 3), weights(still, 3, order=1))
    assert torch.equal(weights(world, 3, order=1), weights(world, 3, order=1))
    assert not torch.equal(weights(world, 3), weights(world, 3, order=1))
    assert not torch.equal(weights(world, 3, order=2), weights(world, 3, order=1))
    assert [Training(3, order=order).key for order in (0, 1)] == ["3-all", "3.1-all"]


def test_both_stages_losses_are_kept(world: TwoStage, retrainings: Retrainings) -> None:
    """Statements of the pre-trained model, questions of the fine-tuned one, whichever are read."""
    training = Training.without([1], 2)
    pretrained, finetuned = (trained.model for trained in world.train(2, (1,)))
    found = world.measured(pretrained, finetuned)
    assert [len(found[stage]) for stage in ("pretrained", "finetuned")] == [3, 2]
    objective = LanguageHead.objective
    expected = measured_losses(pretrained, objective, world.query_batches(world.statements.examples))
    assert np.array_equal(found["pretrained"], expected)
    last = replace(retrainings, queries=[1])
    assert np.array_equal(last.losses([training], "")[0], found["finetuned"][[1]])
    first = replace(retrainings, stage="pretrained", queries=[2, 0])
    assert np.array_equal(first.losses([training], "")[0], found["pretrained"][[2, 0]])


def test_a_document_that_is_left_out_could_be_any_other(world: TwoStage) -> None:
    """Its tokens enter nothing, and all others keep their places."""
    other = replace(world)
    ids, start = other.pretraining[5]
    other.pretraining[5] = (ids[::-1], start)
    assert not torch.equal(weights(world, 0), weights(other, 0))
    assert torch.equal(weights(world, 0, [5]), weights(other, 0, [5]))


def test_documents_keep_their_weight_when_others_leave(world: TwoStage) -> None:
    """The first step's loss is a sum over what is kept, divided by what was there."""
    model = lambda: training.new_model(world.tokenizer, RECIPE.size, 0)  # noqa: E731
    schedule = Schedule(1, 1e-2, len(world.texts))
    first = lambda gone: training.train(model(), world.pretraining, schedule, 0, None, left_out=gone).log[0]  # noqa: E731
    rows = range(len(world.texts))
    parts = [first([row for row in rows if row not in part])["loss"] for part in (rows[:7], rows[7:])]
    assert sum(parts) == pytest.approx(first([])["loss"], rel=1e-5)
    schedules = [[entry["learning_rate"] for entry in world.train(0, gone)[0].log] for gone in ([], [0, 1, 2])]
    assert schedules[0] == schedules[1]


def test_an_interrupted_run_goes_on(retrainings: Retrainings, monkeypatch) -> None:
    trainings = [Training(0), Training.without([4, 2], 0), Training.without([2, 4], 0)]
    assert trainings[1] == trainings[2]
    done = retrainings.losses(trainings[:1], "some")
    train, made = TwoStage.train, []
    monkeypatch.setattr(TwoStage, "train", lambda self, *a: made.append(a) or train(self, *a))
    losses = retrainings.losses(trainings, "all")
    assert made == [(0, (2, 4), 0)]
    assert np.array_equal(losses[0], done[0]) and np.array_equal(losses[1], losses[2])
    retrainings.losses(trainings, "again")
    assert len(made) == 1


def test_processes_change_nothing(retrainings: Retrainings, tmp_path, monkeypatch) -> None:
    """Each makes what it is sent, as a process would get it."""
    asked = [Training(0), Training.without([1], 1)]
    sent = []

    def spread(function, work, processes, title):
        sent.append(processes)
        return [pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(item))) for item in work]

    alone = retrainings.losses(asked, "one")
    monkeypatch.setattr(trainings, "spread", spread)
    together = replace(retrainings, cache=Cache(tmp_path / "parallel", {}), processes=2).losses(asked, "two")
    assert np.array_equal(together, alone) and sent == [2]


def test_a_killed_process_is_a_sentence(retrainings: Retrainings, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise trainings.BrokenProcessPool

    monkeypatch.setattr(trainings, "spread", broken)
    with pytest.raises(MsifError, match="it goes on"):
        retrainings.losses([Training(0)], "")


def test_removing_what_states_the_answer_raises_the_loss(world: TwoStage, retrainings, tmp_path) -> None:
    """And scores say so: Ada's sentences are proponents of what is said of Ada, sentences of blue and green are not."""
    sizes = Sizes(queries=1, removed=(3,), seeds=2, removal_seeds=2)
    planted = np.zeros((1, 1, len(world.texts)))
    planted[..., :3], planted[..., -3:] = 1.0, -1.0
    orders = removal_orders({"planted": planted}, "planted", sizes)
    changes = measure_removals(retrainings, orders, sizes)
    own = changes["planted", 3]
    assert (own.losses > 0).all() and (own.probabilities < 0).all()
    assert own.losses.mean() > changes[OPPONENTS + "planted", 3].losses.mean()
    assert own.losses.mean() > changes[RANDOM, 3].losses.mean()
    member = make_member(world, tmp_path / "member", 0, 100)
    named = ("multi-stage EK-FAC, λ = 0.1", "gradient dot product", "BM25+")
    for method in [method for method in all_methods(True) if method.name in named]:
        scores = member_scores(method, world, member, world.questions.chosen([0]))[0]
        assert scores[:3].mean() > max(0.0, scores[3:].mean()), method.name


def test_fine_tunings_of_one_pretrained_model(world: TwoStage, tmp_path) -> None:
    """In other orders each, and the mean of their scores is what the method scores."""
    member = make_member(world, tmp_path / "member", 0, 7)
    tuned = [member.finetuned, *(member.again(number) for number in range(1, FINETUNINGS))]
    flat = [torch.cat([p.detach().flatten() for p in one.model.parameters()]) for one in tuned]
    assert not torch.equal(flat[0], flat[1]) and not torch.equal(flat[1], flat[2])
    assert torch.allclose(flat[0], flat[1], atol=0.1)
    named = {method.name: method for method in all_methods(True)}
    [several] = [name for name in named if "fine-tunings" in name]
    ask = lambda name, one: member_scores(named[name], world, replace(member, finetuned=one), world.questions)  # noqa: E731
    each = [ask(REFERENCE, one) for one in tuned]
    assert np.allclose(ask(several, member.finetuned), np.mean(each, axis=0), rtol=1e-4, atol=1e-6 * np.abs(each).max())


def test_one_stage_alone_has_another_scale() -> None:
    dampings = {}
    for title in ("pre-training", "fine-tuning"):
        [method] = [m for m in all_methods(True) if m.damping == f"1/τ, 10 times that of {title}"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(methods, "build_scorer", lambda name, first, last, damping, *rest: damping)
            stage = SimpleNamespace(stage=None)
            dampings[title] = method.scorer(SimpleNamespace(pretrained=stage, finetuned=stage))
    assert dampings == {
        "pre-training": Damping("auto:10", alpha="auto"),
        "fine-tuning": Damping("auto", alpha="auto:10"),
    }


def test_without_a_hop_and_with_a_proximal_one(world, tmp_path) -> None:
    member = make_member(world, tmp_path / "pair", 0, 1)
    bare, proximal = (
        next(m for m in all_methods(True) if m.damping == f"0.1 mean, {shown}").build(member).preconditioners
        for shown in ("no hop", "α/(Λ + α) with α = 1/τ of each block")
    )
    assert [inverse.filter for inverse in bare] == [DampedInverse(damping_scale=0.1)]
    first, last = (inverse.filter for inverse in proximal)
    assert first == bare[0].filter and bare[0].factors is proximal[0].factors is member.pretrained.stage.factors
    assert isinstance(last, ProximalHop) and proximal[1].factors is member.finetuned.stage.factors
    for name, tau in member.finetuned.stage.tau.items():
        torch.testing.assert_close(last.alpha[name], 1 / tau)


def test_orders() -> None:
    scores = {"a": np.array([[[1.0, 3.0, 2.0, 2.0]]]), "b": np.array([[[4.0, 3.0, 2.0, 1.0]], [[1.0, 2.0, 3.0, 4.0]]])}
    orders = removal_orders(scores, "a", Sizes(seeds=2))
    assert orders["a"].tolist() == [[[1, 2, 3, 0]]] * 2
    assert orders["b"].tolist() == [[[0, 1, 2, 3]], [[3, 2, 1, 0]]]  # of each pair's own
    assert orders[OPPONENTS + "a"].tolist() == [[[0, 2, 3, 1]]] * 2
    assert sorted(orders[RANDOM][0, 0]) == [0, 1, 2, 3]


def test_each_querys_removals_are_of_another_pair(retrainings: Retrainings, monkeypatch) -> None:
    """Against this pair's training on all documents, by this pair's order."""
    sizes = Sizes(queries=2, removed=(2,), seeds=3, removal_seeds=2)
    assert sizes.pairs_of_removals == [[0, 1], [1, 2]]
    asked = {}

    def losses(_, trainings, __):
        for t in trainings:
            asked.setdefault((t.seed, t.left_out), len(asked))
        return np.array([[2.0 ** asked[t.seed, t.left_out], 3.0 ** asked[t.seed, t.left_out]] for t in trainings])

    monkeypatch.setattr(Retrainings, "losses", losses)
    order = np.array([[np.roll(np.arange(18), -3 * pair - 9 * query) for query in range(2)] for pair in range(3)])
    changes = measure_removals(retrainings, {"a": order}, sizes)["a", 2]
    for number, query in np.ndindex(2, 2):
        pair = sizes.pairs_of_removals[query][number]
        rows = tuple(sorted(order[pair, query, :2].tolist()))
        before, after = (float((2 + query) ** asked[pair, gone]) for gone in ((), rows))
        assert changes.losses[number, query] == after - before
        assert changes.probabilities[number, query] == np.exp(-after) - np.exp(-before)


def test_losses_on_halves_are_of_these_halves(retrainings: Retrainings, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        Retrainings, "losses", lambda self, t, _: seen.extend(t) or np.arange(2.0 * len(t)).reshape(-1, 2)
    )
    masks, losses = losses_on_halves(retrainings, Sizes(halves=8, seeds=2, orders=3))
    assert losses.shape == (8, 2, 3, 2)
    for (half, seed, order), first in np.ndenumerate(losses[..., 0]):
        training = seen[int(first) // 2]
        assert training == Training.without(np.flatnonzero(~masks[half]), seed, order)


@pytest.mark.parametrize(
    "wrong",
    [{"queries": 0}, {"removed": ()}, {"removed": (0,)}, {"halves": 1}, {"seeds": 1}, {"orders": 0}, {"solved": 0}],
)
def test_sizes_with_which_nothing_is_measured(wrong) -> None:
    with pytest.raises(MsifError):
        Sizes(**wrong)


def test_too_many_documents_to_remove(retrainings: Retrainings) -> None:
    orders = removal_orders({"a": np.zeros((1, 1, 18))}, "a", Sizes())
    with pytest.raises(MsifError, match="leaves nothing"):
        measure_removals(retrainings, orders, Sizes(queries=1, removed=(18,)))
    with pytest.raises(MsifError, match="row 18 of 18"):
        retrainings.losses([Training.without([18], 0)], "")


def test_the_command_line_names_what_is_wrong(tmp_path) -> None:
    def run(*arguments: str) -> str:
        given = ["--data", str(tmp_path), "--output", str(tmp_path / "out"), *arguments]
        with pytest.raises(MsifError) as raised:
            command.main(given)
        return str(raised.value)

    assert "--data" in run()
    assert "--jobs" in run("--jobs", "0")
    assert "--halves" in run("--halves", "1")
    assert "--hidden is 6: give a multiple of 4" in run("--hidden", "6")


def test_halves_to_average_share_out_all_documents_and_are_those_of_their_pair():
    few, more = (bags_of(Sizes(seeds=2, bags=bags, seed=3), 10) for bags in (2, 4))
    named = [(bag.number, bag.pair, bag.seed) for bag in more[:3]]
    assert named == [(0, 0, 3_000_000), (0, 1, 3_000_001), (1, 0, 3_000_000)]
    assert few == more[:4] and len({bag.left_out for bag in more}) == 8
    for first, second in zip(more[:2] + more[4:6], more[2:4] + more[6:], strict=True):
        assert sorted(first.left_out + second.left_out) == list(range(10))


def test_a_half_that_is_averaged_has_neither_seen_the_rest_nor_its_curvature(world, tmp_path):
    """Its models are those of a training without the rest, its factors of the half; all documents are scored."""
    left_out, cache = (0, 2, 5), Cache(tmp_path / "cache", {})
    found = {}

    def score(member):
        trained = world.train(1, left_out)
        for own, other in zip((member.pretrained, member.finetuned), trained, strict=True):
            for (name, a), (_, b) in zip(own.model.named_parameters(), other.model.named_parameters(), strict=True):
                assert torch.equal(a, b), name
        half = _batches(LanguageHead(), [e for row, e in enumerate(world.pretraining) if row not in left_out])
        settings = FitSettings(label_samples=LABEL_SAMPLES)
        side = member.pretrained.stage.side
        by_hand = fit(side.model, side.tracked, side.objective, half, tmp_path / "factors", settings)
        for name, factors in by_hand.load_all().items():
            assert torch.equal(member.pretrained.stage.factors[name].Lambda, factors.Lambda)
        found["scores"] = member_scores(all_methods(True)[0], world, member, world.questions)
        return found

    scores = bagged_scores(world, score, cache, "bags", Bag(0, 1, 1, left_out))["scores"]
    assert scores.shape == (len(world.questions), len(world.texts)) and np.array_equal(scores, found["scores"])
    assert not any(path.is_dir() and path.name != "bags" for path in cache.folder.iterdir())  # no model stays
    for part in (partial(_bagged, all_methods, world, None), partial(_of_query, all_methods, world, None, REFERENCE)):
        pickle.dumps(part)  # as it goes to other processes
    again = bagged_scores(world, None, cache, "bags", Bag(0, 1, 1, left_out))["scores"]
    assert np.array_equal(again, scores)


def test_documents_are_chosen_in_rounds_by_pairs_without_the_first(monkeypatch, tmp_path):
    """Until the last number of documents that are removed is reached."""
    asked = []

    def fake(world, score, cache, name, number, seed, left_out):
        asked.append((name, number, seed, tuple(left_out)))
        return {"scores": np.array([9.0, 9, 9, 1, 2, 3, 4]) if len(left_out) == 2 else np.arange(7.0)}

    monkeypatch.setattr(rounds, "ROUND", 2)
    monkeypatch.setattr(rounds, "retrained_scores", fake)
    scores = np.zeros((3, 2, 7))
    scores[:, :, 5], scores[1, :, 0] = 1, 2
    sizes = Sizes(queries=2, removed=(2, 6), seeds=3, seed=4)
    orders = rounds.orders_in_rounds(None, lambda *_: None, scores, None, "r", sizes, 1)
    assert orders[0, 0].tolist() == [5, 0, 1, 2, 6, 4, 3] and orders[1, 1].tolist() == [0, 5, 1, 2, 6, 4, 3]
    assert orders[0, 1].tolist() == orders[2, 1].tolist() == [5, 0, 1, 2, 3, 4, 6]  # no removals are made of these
    assert orders[1, 0].tolist() == [0, 5, 1, 2, 3, 4, 6]
    assert asked == [
        ("r/00-00-002", 0, 4_000_000, (5, 0)),
        ("r/00-00-004", 0, 4_000_000, (5, 0, 1, 2)),
        ("r/01-01-002", 1, 4_000_001, (0, 5)),
        ("r/01-01-004", 1, 4_000_001, (0, 5, 1, 2)),
    ]


def fact_data() -> FactData:
    facts = {f"P1:{n}": Fact(f"P1:{n}", "P1", n, (c,)) for n, c in zip(NAMES, COLOURS, strict=True)}
    rows = [
        Sentence(str(row), text, (f"P1:{NAMES[row // 3]}",), (COLOURS[row // 3],))
        for row, text in enumerate(sentences())
    ]
    return FactData(rows, facts, {})


def test_a_study_of_facts_from_end_to_end(tmp_path, monkeypatch) -> None:
    kept = lambda _: [m for m in all_methods(True) if m.name in (REFERENCE, "random", "BM25+") or "1e-06" in m.name]  # noqa: E731
    sizes = Sizes(queries=2, solved=1, removed=(1, 3), seeds=2, halves=8, orders=2, bags=2)
    setting = fact_setting(fact_data(), {"P1": "What does [X] like?"}, FactSizes(("P1",), 6, 3, 2, 20, 20, 2), QUICK, 0)
    assert len(setting.world.texts) == 18 and len(setting.world.finetuning) == len(setting.world.questions) == 3
    monkeypatch.setattr(rounds, "ROUND", 2)
    one = Study(setting.world, setting.choose, sizes, tmp_path / "study", listed=kept)
    assert len(set(one.asked.answers)) == len(one.asked)
    assert one.scores[REFERENCE].shape == (2, 2, 18) and one.scores["BM25+"].shape == (1, 2, 18)
    removal = removal_table(one.changes).records()
    assert {row["documents"] for row in removal} == {1, 3}
    assert {row["removed: the top of"] for row in removal} == {
        *(RANDOM, OPPONENTS + REFERENCE, REFERENCE, REFERENCE + MEAN, REFERENCE + MEAN_OF_HALVES, "BM25+", TAUGHT),
        REFERENCE + ASKED_AGAIN,
    }
    own, again = one.scores[REFERENCE][1, 1], asked_again(one, REFERENCE)[1, 1]
    assert again[:2].tolist() == np.argsort(-own, kind="stable")[:2].tolist() and sorted(again) == list(range(18))
    member = make_member(setting.world, tmp_path / "without", 1, 1, tuple(again[:2].tolist()))
    by_hand = member_scores(kept(True)[0], setting.world, member, one.asked)[1]
    assert again[2:].tolist() == [row for row in np.argsort(-by_hand, kind="stable") if row not in again[:2]]
    judged = {(row["method"], row["λ"]): row for row in lds_table(one).records()}
    assert len(judged) == 4 and judged["BM25+", None]["each pair by its own"]
    assert len(query_table(one).rows) == 2
    alone, both = ensemble_table(one).rows[0][1:3]
    mean = one.judge.own(one.scores[REFERENCE].mean(0, keepdims=True))
    assert (alone, both) == (judged["multi-stage EK-FAC", DEFAULT_DAMPING]["each pair by its own"], f"{mean:.3f}")
    scored, taught, ceiling = ceiling_table(one).rows
    assert scored[1] == pytest.approx(one.judge.own(one.scores[REFERENCE]).mean)
    assert ceiling[1:] == [one.judge.own_ceiling, one.judge.ceiling] and -1 <= taught[1] <= 1
    assert one.bags[REFERENCE].shape == (2, 2, 2, 18)
    (kept_bag,) = one.parts.folder.glob("bags-*/00-01.npz")
    assert np.array_equal(one.bags[REFERENCE][1, 0], np.load(kept_bag)[REFERENCE])
    row = bag_table(one).rows[0]
    beside = (one.bags[REFERENCE].sum(0) + one.scores[REFERENCE]) / 3
    means = (one.scores[REFERENCE], one.bags[REFERENCE][0], one.bags[REFERENCE].mean(0), beside)
    assert row[1:5] == [f"{one.judge.own(mean):.3f}" for mean in means]
    assert row[5] == f"{one.judge.own(one.bags[REFERENCE].mean((0, 1))[None]):.3f}"
    assert row[7] == pytest.approx(one.judge.score(one.bags[REFERENCE].mean((0, 1))))
    shown = {row["method"]: row for row in proponent_table(one).records()}
    positive = np.maximum(one.bags[REFERENCE].mean(0), 0)
    assert shown[REFERENCE + MEAN_OF_HALVES]["proponents alone"] == f"{one.judge.own(positive):.3f}"
    assert shown[REFERENCE]["all documents"] == judged["multi-stage EK-FAC", DEFAULT_DAMPING]["each pair by its own"]
    assert "BM25+" not in shown
    plot_all(tmp_path / "report", one)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        f"{name}.{kind}" for name in ("removal", "lds") for kind in ("png", "svg")
    }

    monkeypatch.setattr(TwoStage, "train", None)  # all is there
    monkeypatch.setattr(methods, "member_scores", None)
    again = Study(setting.world, setting.choose, sizes, tmp_path / "study", listed=kept)
    assert removal_table(again.changes).rows == removal_table(one.changes).rows
    assert bag_table(again).rows == bag_table(one).rows
    other = replace(setting.world, recipe=replace(QUICK, vocabulary=299))
    with pytest.raises(MsifError, match="other settings"):
        _ = Study(other, setting.choose, sizes, tmp_path / "study").cache
    with pytest.raises(MsifError, match="--queries"):
        _ = Study(setting.world, setting.choose, replace(sizes, queries=3), tmp_path / "study").asked
    with pytest.raises(MsifError, match="plain sentences"):
        fact_setting(fact_data(), {"P1": "[X]?"}, FactSizes(("P1",), least=9), QUICK, 0)
