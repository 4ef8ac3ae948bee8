"""What a fit will take: counted as it is done, measured on a small batch, with nothing of the factors' size."""

import re
from collections import Counter

import pytest
import torch
from helpers import Allocated, Products, documents, tiny_classifier, tiny_lm, track_modules
from test_factors_dense import fitted

from msif.curvature import probe
from msif.curvature.covariance import CovariancePass
from msif.curvature.eigenvalues import LambdaPass
from msif.curvature.estimate import Machines, describe_fit, fit_seconds, fit_speed, sizes
from msif.curvature.factors import ModuleFactors
from msif.curvature.filters import DampedInverse
from msif.curvature.fit import FitSettings
from msif.curvature.inputs import find_input_groups
from msif.curvature.preconditioners import EKFAC
from msif.curvature.probe import measure
from msif.curvature.work import PAGED, Work, covariance_work, lambda_work, rotation_work, temporaries
from msif.data.documents import collate
from msif.data.sample import Plan
from msif.models.capture import Capture, Consumer
from msif.models.check import check_once
from msif.models.objectives import CausalLM, SequenceClassification


def products(work):
    with Products() as counter:
        work()
    return counter.count


def wide_lm(**changes):
    settings = {"hidden_size": 16, "intermediate_size": 40, "max_position_embeddings": 512, **changes}
    return tiny_lm(dtype=torch.float32, **settings)


def products_of_pass(model, tracked, consumer, batch, cotangents):
    """Beside the model's own."""
    check_once(model, tracked, CausalLM(), batch)  # which is not of the pass

    def run(consumer):
        with Capture(model, tracked, consumer) as capture:
            return products(lambda: capture.run(CausalLM(), batch, cotangents))

    return run(consumer) - run(Consumer())


def plan_of(docs, times=1):
    return Plan(Counter((1, len(document)) for document in docs), times, len(docs) * times, 0.0, docs)


@pytest.fixture(scope="module")
def lm():
    model = wide_lm()
    return model, track_modules(model)


@pytest.mark.parametrize("length", [12, 300])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("modules", "tied"),
    [(modules, False) for modules in ("layers", "everything", "norm", "embed_in", "lm_head")]
    + [(modules, True) for modules in ("everything", "lm_head")],
)
def test_products_are_counted_as_they_are_done(modules, tied, length, samples):
    """Short sequences have their inputs rotated, long ones their gradients; a table's rows are added up without any."""
    model = wide_lm(vocab_size=60, tie_word_embeddings=tied)
    tracked = track_modules(model, modules)
    batch = collate(documents([length] * 3))
    groups = find_input_groups(model, tracked, CausalLM(), batch)
    cotangents = FitSettings(label_samples=samples).cotangents(CausalLM(), 1)
    covariances = CovariancePass(tracked, groups, torch.device("cpu"), label_samples=samples)
    done = products_of_pass(model, tracked, covariances, batch, cotangents)
    assert covariance_work(tracked, groups, 3, length, samples).multiply_adds == pytest.approx(done, rel=0.1)
    factors = covariances.decompose([module.name for module in tracked])
    second_moments = LambdaPass(tracked, groups, factors, torch.device("cpu"), label_samples=samples)
    done = products_of_pass(model, tracked, second_moments, batch, cotangents)
    assert lambda_work(tracked, groups, 3, length, samples).multiply_adds == pytest.approx(done, rel=0.1)


@pytest.mark.parametrize(("modules", "tied"), [("layers", False), ("everything", False), ("everything", True)])
def test_sizes_are_those_of_the_factors(modules, tied):
    model = tiny_lm(tie_word_embeddings=tied)
    tracked, batch = track_modules(model, modules), collate(documents([5, 7]))
    covariances, _, factors = fitted(model, tracked, CausalLM(), [batch])
    tensors = {id(t): t for f in factors.values() for t in vars(f).values() if t is not None}
    size = sizes(tracked, covariances.groups)
    assert size.factor_bytes == 4 * sum(tensor.numel() for tensor in tensors.values())
    eigen = Counter()
    for Q in {id(Q): Q for f in factors.values() for Q in (f.Q_A, f.Q_G) if Q is not None}.values():
        eigen[Q.shape[-1]] += Q.numel() // Q.shape[-1] ** 2
    assert size.eigen == eigen
    assert size.parameters == sum(f.Lambda.numel() for f in factors.values())
    if modules == "everything":
        assert size.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("modules", "tied"), [("layers", False), ("everything", False), ("everything", True)])
def test_rotations_are_counted_as_they_are_done(modules, tied):
    tracked = track_modules(wide_lm(vocab_size=60, tie_word_embeddings=tied), modules)
    factors, vectors = {}, {}
    for module in tracked:
        (d_out, d), rows = module.shape, module.block_rows
        Q_A = None if module.column_basis == "identity" else torch.eye(d)
        Q_G = None if module.row_basis == "identity" else torch.eye(rows).repeat(len(module.blocks), 1, 1)
        S_G, Lambda = torch.ones(len(module.blocks), rows), torch.ones(len(module.blocks), rows, d)
        factors[module.name] = ModuleFactors(Q_A, Q_G, torch.ones(d), S_G, Lambda)
        vectors[module.name] = torch.ones(1, d_out, d)
    done = products(lambda: EKFAC(factors, DampedInverse(1.0)).apply(vectors))
    assert rotation_work(tracked).multiply_adds == done


def test_large_temporaries_come_page_by_page():
    assert temporaries(2, 10, PAGED - 1) == Work(elements=40)
    assert temporaries(2, 10, PAGED) == Work(elements=40, paged=20)
    assert Work(1, 2, 3, 4) + Work(1, 1, 1, 1) * 2 == Work(3, 4, 5, 6)


@pytest.fixture
def tokens_run(monkeypatch):
    """Tokens of every batch that goes through a model."""
    outputs, tokens = CausalLM.outputs, []

    def counted(self, model, batch):
        tokens.append(batch.input_ids.numel())
        return outputs(self, model, batch)

    monkeypatch.setattr(CausalLM, "outputs", counted)
    return tokens


def test_nothing_of_the_factors_size_is_made_and_one_small_batch_is_run(tokens_run):
    model = tiny_lm(dtype=torch.float32, hidden_size=64, num_attention_heads=1, intermediate_size=256)
    tracked = track_modules(model)
    plan = plan_of(documents([20] * 50), times=2)
    with Allocated(model) as made:
        speed = fit_speed(model, tracked, CausalLM(), plan, FitSettings())
        passes, eigen = fit_seconds(speed, plan, tracked, FitSettings())
    assert passes > 0 and eigen > 0
    assert 2 * made.largest < min(module.d_out * module.d_in for module in tracked if "mlp" in module.name)
    size = sizes(tracked, speed.groups)
    assert not made.shapes & ({(d, d) for d in size.eigen} | {(1, d, d) for d in size.eigen})
    assert tokens_run[:3] == [probe.FEW] * 3 and len(tokens_run) == 5
    assert tokens_run[3] == tokens_run[4] <= probe.SHARE * plan.tokens


@pytest.mark.parametrize(("limit", "value"), [("TOKENS", 20), ("OUTPUTS", 20 * 11), ("SECONDS", 0.0)])
def test_the_small_batch_is_small_whatever_the_data(tokens_run, monkeypatch, limit, value):
    monkeypatch.setattr(probe, limit, value)
    model = tiny_lm(dtype=torch.float32)
    fit_speed(model, track_modules(model), CausalLM(), plan_of(documents([20] * 9), times=1e6), FitSettings())
    assert max(tokens_run) <= 20 and len(tokens_run) <= 5


def test_time_goes_with_the_data(lm):
    model, tracked = lm
    docs = documents([20] * 50)
    speed = fit_speed(model, tracked, CausalLM(), plan_of(docs), FitSettings())
    (one, eigen), (ten, same) = (fit_seconds(speed, plan_of(docs, n), tracked, FitSettings()) for n in (100, 1000))
    assert ten == pytest.approx(10 * one, rel=0.05) and eigen == same
    drawn, _ = fit_seconds(speed, plan_of(docs, 1000), tracked, FitSettings(label_samples=4))
    assert 1.2 * ten < drawn < 4 * ten


def test_what_is_held_is_counted_whatever_the_cotangent(lm):
    """That of a margin makes gradients of its own; they are not kept."""
    model, tracked = lm
    objective, plan = CausalLM(), plan_of(documents([20] * 50), 100)
    margin = objective.measurement("margin")
    cotangents = [
        objective.loss_gradient,
        lambda outputs, batch: objective.measurement_gradient(outputs, batch, margin),
    ]
    counted = [measure(model, tracked, objective, plan, {"one": one}).activations for one in cotangents]
    assert counted[0] == counted[1] and counted[0][0] > 0
    told = describe_fit(model, tracked, objective, plan, FitSettings(), Machines(), stream=False)
    line = next(line for line in told.splitlines() if line.startswith("memory"))
    whole, *parts = (
        float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit] for number, unit in re.findall(r"([\d.]+) (k?M?B)", line)
    )
    assert "its activations" in line and sum(parts[:4]) == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize(("d", "milliseconds"), [(1024, 11.3), (2048, 25.4), (4096, 90.3), (4864, 146.3), (8192, 495)])
def test_eigenvectors_on_a_gpu(d, milliseconds):
    """As one took for them (docs/results/performance/gpu.json), from the time of d = 256 in float64."""
    seconds = 2.2e-3 * probe.EIGEN["cuda"](d) / probe.EIGEN["cuda"](256)
    assert seconds == pytest.approx(milliseconds / 1e3, rel=0.3)


def test_a_classifier_is_measured_too():
    model = tiny_classifier(dtype=torch.float32)
    docs = documents([20] * 9, labels=True)
    speed = fit_speed(model, track_modules(model), SequenceClassification(0), plan_of(docs, 100), FitSettings())
    assert speed.outputs < 1 and speed.forward.token > 0 and speed.cotangents["labels"].token >= 0


def test_a_first_run_that_brings_weights_into_memory_is_not_measured(lm, monkeypatch):
    (model, tracked), run, runs = lm, probe._Timer.run, []

    def cold(self, batch):
        runs.append(batch)
        return [seconds + (100.0 if len(runs) == 1 else 0.0) for seconds in run(self, batch)]

    monkeypatch.setattr(probe._Timer, "run", cold)
    speed = fit_speed(model, tracked, CausalLM(), plan_of(documents([30] * 20)), FitSettings())
    assert len(runs) >= 2 and speed.forward.token < 1.0 and speed.step < 1.0
