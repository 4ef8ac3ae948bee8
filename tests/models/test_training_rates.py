"""Σ η of schedules, held against the sum of the very rates that were taken."""

import json
import logging
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler
from trainings import leave
from transformers import get_scheduler

from msif.errors import MsifError
from msif.models.training.optimizers import Unusable
from msif.models.training.rates import group_shares, learning_rates_summed
from msif.models.training.schedules import EXACT, Rates, by_lines, by_schedule

PEAK = 5e-5
RECORDED = [json.loads(line) for line in (Path(__file__).parent / "recorded_rates.jsonl").read_text().splitlines()]
PLAIN = ["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "cosine_with_restarts"]


@pytest.fixture(autouse=True)
def only_warnings(caplog):
    """Whatever level a command left in this process."""
    caplog.set_level(logging.WARNING, "msif")


def group(final, initial=PEAK, **more):
    return {"lr": final, "params": []} | ({} if initial is None else {"initial_lr": initial}) | more


def summed(folder, *groups, place=0):
    return learning_rates_summed(folder, list(groups), place)


def close(found, exact, caplog):
    """Right within a few per cent, or said to be uncertain."""
    return abs(found / exact - 1) <= 0.05 or any(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("record", RECORDED, ids=[record["name"] for record in RECORDED])
def test_what_real_trainings_left(tmp_path, record, caplog):
    """Recorded from the Trainer of transformers 5: 40 steps, "l10" logged every 10, "w4" after a warm-up of 4, "stop" a
    checkpoint after 25. Of no or few rates the sum may be wrong, but not silently."""
    leave(tmp_path, logged=record["logged"], steps=record["steps"], planned=record["planned"])
    found = summed(tmp_path, group(record["final"], record["initial_lr"]))
    name, logs = record["name"], len(record["logged"])
    assert close(found, record["exact"], caplog)
    assert 0.5 < found / record["exact"] < 1.5
    if logs >= 2 and name.startswith(("linear", "cosine-", "polynomial-", "inverse_sqrt", "cosine_with_restarts-w0")):
        assert found == pytest.approx(record["exact"], rel=1e-6) and not caplog.records


class Training:
    """The rates of a schedule, as the Trainer has them."""

    def __init__(self, make, steps):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=PEAK)
        self.scheduler, self.steps = make(optimizer), steps
        self.rates = []
        for _ in range(steps):
            self.rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            self.scheduler.step()
        self.group = optimizer.state_dict()["param_groups"][0]

    def leave(self, folder, every, late=False, first=False, **more):
        after = [*self.rates[1:], self.group["lr"]] if late else self.rates
        steps = {*range(every, self.steps + 1, every)} | ({1} if first else set())
        logged = {step: after[step - 1] for step in sorted(steps)}
        return leave(folder, None, logged, self.steps, self.steps, self.scheduler, **more)


@cache
def of_transformers(name, steps, warm_up, options=()):
    return Training(
        lambda o: get_scheduler(
            name, o, num_warmup_steps=warm_up, num_training_steps=steps, scheduler_specific_kwargs=dict(options) or None
        ),
        steps,
    )


@pytest.mark.parametrize("late", [False, True], ids=["in-time", "late"])
@pytest.mark.parametrize("every", [500, 100, 10, 1])
@pytest.mark.parametrize("name", PLAIN)
def test_schedules_of_transformers(tmp_path, name, every, late, caplog):
    """Logged in time, as today's Trainer does, and late, as it did; some hundreds of steps, after which 500 is once."""
    for steps, warm_up in ((700, 0), (700, 70), (60, 6)):
        training = of_transformers(name, steps, warm_up)
        caplog.clear()
        found = summed(training.leave(tmp_path, every, late), training.group)
        assert close(found, sum(training.rates), caplog), (steps, warm_up)
        if steps / every >= 6 and (every < warm_up or "constant" not in name):  # of which a warm-up may be hidden
            assert found == pytest.approx(sum(training.rates), rel=0.01) and not caplog.records


RARE = [
    ("cosine_with_min_lr", (("min_lr_rate", 0.1),)),
    ("cosine_with_restarts", (("num_cycles", 3),)),
    ("polynomial", (("power", 2.0), ("lr_end", 0.0))),
    ("warmup_stable_decay", (("num_decay_steps", 100),)),
    ("inverse_sqrt", (("timescale", 300),)),
    ("cosine", (("num_cycles", 1.5),)),
]


@pytest.mark.parametrize("every", [300, 60, 7])
@pytest.mark.parametrize(("name", "options"), RARE, ids=[name for name, _ in RARE])
def test_schedules_that_are_asked_for(tmp_path, name, options, every, caplog):
    for warm_up in (0, 50):
        training = of_transformers(name, 700, warm_up, options)
        caplog.clear()
        try:
            found = summed(training.leave(tmp_path, every), training.group)
        except MsifError as error:
            assert every == 300 and "--learning-rate-sum" in str(error) and "--alpha 0" in str(error)
        else:
            assert close(found, sum(training.rates), caplog)
            assert every > 60 or found == pytest.approx(sum(training.rates), rel=0.1)


OF_TORCH = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 10, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [10, 30], 0.1),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 40, 1e-6),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 10),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 40, 2.0),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 10),
}


@pytest.mark.parametrize("late", [False, True], ids=["in-time", "late"])
@pytest.mark.parametrize("name", OF_TORCH)
def test_schedulers_of_torch_are_played_again(tmp_path, name, late, caplog):
    training = Training(OF_TORCH[name], 40)
    for every in (500, 10, 1):
        found = summed(training.leave(tmp_path, every, late), training.group)
        assert found == pytest.approx(sum(training.rates), rel=1e-6)
    assert not caplog.records


def one_cycle(optimizer):
    return lr_scheduler.OneCycleLR(optimizer, 5e-4, 40)


def in_sequence(optimizer):
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 10), lr_scheduler.CosineAnnealingLR(optimizer, 30)]
    return lr_scheduler.SequentialLR(optimizer, parts, [10])


def cyclic(optimizer):
    return lr_scheduler.CyclicLR(optimizer, 1e-6, PEAK, 5)


@pytest.mark.parametrize("make", [one_cycle, in_sequence, cyclic])
def test_other_schedulers_are_only_summed(tmp_path, make):
    """Their first rate is no peak, and their last says nothing: nothing but the logged rates is believed."""
    training = Training(make, 40)
    assert summed(training.leave(tmp_path, 1), training.group) == pytest.approx(sum(training.rates), rel=1e-6)
    for every in (500, 20):
        with pytest.raises(MsifError, match="too little of its schedule"):
            summed(training.leave(tmp_path, every), training.group)
    # what cannot be read of it is no scheduler of transformers either
    (training.leave(tmp_path, 500) / "scheduler.pt").write_bytes(b"no pickle")
    with pytest.raises(MsifError, match="logs no learning_rate"):
        summed(tmp_path, training.group)


def test_a_rate_that_follows_the_evaluation(tmp_path):
    """Plateaus: no `initial_lr`, no base rates."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=PEAK)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    logged = {step: PEAK if step <= 20 else PEAK / 10 for step in range(2, 41, 2)}
    leave(tmp_path, None, logged, 40, 40, plateau)
    assert summed(tmp_path, group(PEAK / 10, None)) == pytest.approx(22 * PEAK, rel=0.05)


@pytest.mark.parametrize("logged", [{1: 0.0}, {1: PEAK / 150}, {500: PEAK / 150}, {7: 1e-9, 9: 1e-9}])
def test_one_rate_is_never_all_rates(tmp_path, logged, caplog):
    """A rate of the warm-up, or the last of a decay: up to 150 times too small, were it taken for all."""
    leave(tmp_path, None, logged, 1000, 1000)
    try:
        found = summed(tmp_path, group(0.0))
    except MsifError as error:
        assert "too little of its schedule" in str(error) or "anything" in str(error)
    else:
        assert found == pytest.approx(500 * PEAK, rel=0.3)


def test_what_it_rests_on_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO, "msif")
    training = of_transformers("linear", 60, 6)
    summed(training.leave(tmp_path, 10), training.group)
    assert "(6 logged rates in 60 steps, schedule: linear after a warm-up of 6 steps)" in caplog.text
    caplog.clear()
    summed(training.leave(tmp_path, 500), training.group)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "(no logged rates in 60 steps, schedule: linear or cosine): give --learning-rate-sum" in record.message


def test_long_trainings_take_no_time(tmp_path):
    """Of 50,000 steps not all lengths of a warm-up are tried."""
    steps, warm_up = 50_000, 1_500
    rates = PEAK * np.minimum(np.arange(steps) / warm_up, (steps - np.arange(steps)) / (steps - warm_up))
    for every in (500, 15_000):
        leave(tmp_path, None, {step: rates[step - 1] for step in range(every, steps + 1, every)}, steps, steps)
        assert summed(tmp_path, group(0.0)) == pytest.approx(rates.sum(), rel=0.01)


# ---- logs that are not as the Trainer writes them


def linear(steps, planned):
    return {step: PEAK * (1 - (step - 1) / planned) for step in steps}


ODD = {
    "strings": lambda log: [{**entry, "learning_rate": str(entry["learning_rate"])} for entry in log],
    "rounded": lambda log: [{**entry, "learning_rate": f"{entry['learning_rate']:.2e}"} for entry in log],
    "shuffled": lambda log: log[50:] + log[:50][::-1],
    "repeated": lambda log: [*log[:60], *log[40:]],
    "nan between": lambda log: [*log, {"step": 35, "learning_rate": float("nan")}],
    "null, words, truth": lambda log: [*log, *({"step": 3, "learning_rate": bad} for bad in (None, "fast", True))],
    "no step": lambda log: [*log, {"learning_rate": 1.0}],
    "beyond the end": lambda log: [*log, {"step": 5000, "learning_rate": 1.0}],
    "fractional steps": lambda log: [{**entry, "step": float(entry["step"])} for entry in log],
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_logs(tmp_path, kind):
    log = [{"step": step, "learning_rate": rate} for step, rate in linear(range(10, 1001, 10), 1000).items()]
    leave(tmp_path, steps=1000, planned=1000, log_history=ODD[kind](log))
    assert summed(tmp_path, group(0.0)) == pytest.approx(500.5 * PEAK, rel=0.01)


def test_a_training_that_was_resumed_for_longer(tmp_path):
    """Half a training to zero, and from there the second half of one that is twice as long."""
    rates = [PEAK * (1 - k / 500) for k in range(500)] + [PEAK * (1 - k / 1000) for k in range(500, 1000)]
    logged = {step: rates[step - 1] for step in range(20, 1001, 20)}
    leave(tmp_path, None, logged, 1000, 1000)
    assert summed(tmp_path, group(0.0)) == pytest.approx(sum(rates), rel=0.05)


def test_a_step_that_was_logged_twice_counts_as_logged_last(tmp_path):
    log = [{"step": step, "learning_rate": 1.0} for step in range(1, 11)]
    log += [{"step": step, "learning_rate": rate} for step, rate in linear(range(1, 11), 10).items()]
    leave(tmp_path, steps=10, planned=10, log_history=log)
    assert summed(tmp_path, group(0.0)) == pytest.approx(5.5 * PEAK)


def test_rates_that_were_set_by_hand(tmp_path):
    """Without a scheduler the optimizer's rate is that of its last step; any shape, if every step is logged."""
    rates = list(np.random.default_rng(0).uniform(1e-5, 1e-3, 30))
    leave(tmp_path, None, dict(enumerate(rates, 1)), 30)
    assert summed(tmp_path, group(rates[-1], None)) == pytest.approx(sum(rates))
    leave(tmp_path, None, {500: 1e-3}, 1000)
    assert summed(tmp_path, group(1e-3, None)) == pytest.approx(1.0)
    for logged, final in (({}, 1e-3), ({500: 1e-3}, 1e-5), ({3: 1e-3, 500: 2e-3}, 1.0)):
        leave(tmp_path, None, logged, 1000)
        with pytest.raises(MsifError, match="too little of its schedule"):
            summed(tmp_path, group(final, None))


def test_rates_above_the_schedules_own(tmp_path):
    """A training that was resumed at another rate keeps the first one: the log is believed."""
    leave(tmp_path, None, {step: 10 * rate for step, rate in linear(range(10, 101, 10), 100).items()}, 100, 100)
    assert summed(tmp_path, group(0.0)) == pytest.approx(505 * PEAK, rel=1e-6)


def test_a_scheduler_that_the_log_contradicts(tmp_path):
    training = Training(OF_TORCH["StepLR"], 40)
    rates = np.random.default_rng(0).uniform(0.1, 1, 40) * PEAK
    leave(tmp_path, None, dict(enumerate(rates, 1)), 40, 40, training.scheduler)
    assert summed(tmp_path, training.group) == pytest.approx(rates.sum(), rel=1e-6)


def test_what_fits_two_shapes_that_are_far_apart(tmp_path):
    """From the peak to a tenth of it: down to a floor, or by an inverse root after a warm-up of ten steps."""
    leave(tmp_path, None, {}, 1000, 1000)
    with pytest.raises(MsifError, match=r"may sum to anything from 0\.009\S+ to 0\.027\S+ \(no logged rates in 1000"):
        summed(tmp_path, group(PEAK / 10))


def test_every_rate_has_to_fit():
    """Also one among many, whose neighbours are those that a schedule was held against."""
    logged = linear(range(1, 1001), 1000)
    assert by_schedule(Rates(1000, 1000, logged, PEAK, 0.0), EXACT).value == pytest.approx(500.5 * PEAK)
    assert by_schedule(Rates(1000, 1000, {**logged, 500: PEAK}, PEAK, 0.0), EXACT) is None


def test_logs_that_meet_the_peaks_of_restarts():
    """Every tenth rate is the peak, and the last falls: logged late it would be the final one, which it is not."""
    known = Rates(40, 40, {10: PEAK, 20: PEAK, 30: PEAK, 40: PEAK / 8}, PEAK, 0.0)
    assert "cycles" not in by_schedule(known, EXACT).basis


def test_lines_bound_what_lies_between_them():
    rates = [1.0] * 40 + [0.1] * 60
    logged = {step: rates[step - 1] for step in range(10, 101, 10)}
    found = by_lines(Rates(100, 100, logged))
    assert found.low < sum(rates) < found.high < 1.6 * found.low and found.low < found.value < found.high
    assert by_lines(Rates(100, 100, {10: 1.0, 90: 0.1})) is None
    assert by_schedule(Rates(100, 100, logged), EXACT) is None
    # a peak that was never logged may be beside the highest
    hidden = by_lines(Rates(100, 100, logged, peak=10.0))
    assert hidden.high > found.high + 8 * 40


# ---- groups


def test_groups_by_their_first_rates():
    assert group_shares([group(0.0), group(0.0)]) == [1.0, 1.0]
    assert group_shares([group(0.0, 2e-3), group(0.0, 1e-3), group(0.0, 0.0)]) == [1.0, 0.5, 0.0]
    assert group_shares([group(0.0, 0.0), group(0.0, 1e-3)]) == [0.0, 1.0]
    assert group_shares([group(torch.tensor(2e-3), None), group(1e-3, None)]) == [1.0, pytest.approx(0.5)]
    with pytest.raises(Unusable, match="schedules of their own"):
        group_shares([group(1e-3, 1e-3), group(1e-4, 1e-2)])
    with pytest.raises(Unusable, match="relative steps"):
        group_shares([group(None)])


def test_the_log_is_of_the_first_group(tmp_path):
    """A head in front that stands still logs zeros: the rates of the others come from the optimizer."""
    leave(tmp_path, None, dict.fromkeys(range(10, 101, 10), 0.0), 100, 100)
    assert summed(tmp_path, group(0.0, 0.0), group(0.0), place=1) == pytest.approx(50.5 * PEAK, rel=1e-6)
