"""Numerical rules of the passes, each on input where breaking it shows."""

from dataclasses import replace

import pytest
import torch
from helpers import documents, labelled, tiny_classifier, tiny_lm
from test_factors_dense import fitted, run

from msif.attribution.gradients import Side, query_gradients
from msif.attribution.scoring import ScorePass, split_bias
from msif.curvature.covariance import CovariancePass
from msif.curvature.factors import eigendecompose
from msif.curvature.fit import FitSettings, fit
from msif.curvature.inputs import find_input_groups
from msif.curvature.vectors import dot
from msif.data.documents import collate
from msif.models.capture import Capture, Consumer, _half_scale
from msif.models.objectives import CausalLM, Regression
from msif.models.select import track_modules

# of one sequence longer than the maps are wide, too, so that rotations come before and after the contraction
LENGTHS = ([5, 9, 3, 7], [30, 25])


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("elements", [1, 300])
def test_eigenvalues_do_not_depend_on_how_many_sequences_are_taken_at_a_time(monkeypatch, lengths, elements):
    model, objective, data = tiny_lm(), CausalLM(), [collate(documents(lengths))]
    tracked = track_modules(model)
    _, _, whole = fitted(model, tracked, objective, data)
    monkeypatch.setattr("msif.curvature.eigenvalues.CHUNK_ELEMENTS", elements)
    _, _, chunks = fitted(model, tracked, objective, data)
    for name, factors in whole.items():
        torch.testing.assert_close(chunks[name].Lambda, factors.Lambda)


@pytest.mark.parametrize("elements", [1, 300])
@pytest.mark.parametrize("with_norms", [True, False])
@pytest.mark.parametrize("modules", ["layers", "everything"])  # of a tied model, whose table has two uses
def test_scores_and_norms_do_not_depend_on_how_many_sequences_are_taken_at_a_time(
    monkeypatch, modules, elements, with_norms
):
    model, objective, batch = tiny_lm(tie_word_embeddings=True), CausalLM(), collate(documents([5, 9, 3, 7]))
    tracked = track_modules(model, modules)
    biased = {module.name: module.bias for module in tracked}
    vectors = {module.name: torch.randn(60, *module.shape).double() for module in tracked}
    split = split_bias(vectors, biased)  # so many queries that gradients are formed

    def scored():
        consumer = ScorePass(split, with_norms)
        with Capture(model, tracked, consumer) as capture:
            capture.run(objective, batch, [objective.loss_gradient])
        return consumer.scores, consumer.norms

    whole = scored()
    monkeypatch.setattr("msif.models.outer.CHUNK_ELEMENTS", elements)
    torch.testing.assert_close(scored(), whole)
    assert (whole[0] != 0).all() and bool((whole[1] > 0).all()) == with_norms


class Gradients(Consumer):
    def __init__(self):
        self.g = {}

    def right(self, module, right): ...

    def backward(self, module, uses):
        (use,) = uses
        self.g[module.name] = use.left


def gradients(model, batch, scale=1.0):
    consumer, objective = Gradients(), CausalLM()
    with Capture(model, track_modules(model), consumer) as capture:
        capture.run(objective, batch, [lambda outputs, batch: scale * objective.loss_gradient(outputs, batch)])
    return consumer.g


def test_gradients_of_a_float16_model_have_the_size_of_the_loss():
    batch = collate(documents([5, 7]))
    expected = gradients(tiny_lm(dtype=torch.float32), batch)
    for name, g in gradients(tiny_lm(dtype=torch.float16), batch).items():
        assert g.dtype == torch.float32
        torch.testing.assert_close(g, expected[name], rtol=0.05, atol=0.02 * float(expected[name].abs().max()))


@pytest.mark.parametrize("label", [0.0, 200.0, -3000.0, 30000.0])
def test_large_labels_of_a_float16_regression_do_not_overflow(label):
    batch, objective = collate(labelled([5, 4], [[label], [3.0]])), Regression(0, 1)

    def gradients_in(dtype):
        model = tiny_classifier(num_labels=1, dtype=dtype)
        return query_gradients(Side(model, track_modules(model, "layers"), objective), [batch])

    expected = gradients_in(torch.float32)
    for name, g in gradients_in(torch.float16).items():
        torch.testing.assert_close(g, expected[name], rtol=0.05, atol=0.02 * float(expected[name].abs().max()))


@pytest.mark.parametrize(("factor", "scale"), [(1e-3, 256), (0.5, 256), (1.0, 256), (3.0, 64), (4.0, 64), (5.0, 32)])
def test_only_what_starts_above_one_is_carried_at_less(factor, scale):
    """Powers of two, which take no digit."""
    assert _half_scale(torch.tensor([[0.1, -factor, 0.0]], dtype=torch.float64)) == scale
    assert _half_scale(torch.tensor([[torch.inf]])) == 256 and _half_scale(torch.zeros(2, 3)) == 256


def test_fewer_gradients_of_a_float16_model_vanish_than_float16_would_lose(monkeypatch):
    batch, faint = collate(documents([5, 7])), 2.0**-18  # a loss as small as that of a model that is sure
    there = {name: g != 0 for name, g in gradients(tiny_lm(dtype=torch.float32), batch).items()}

    def lost():
        found = gradients(tiny_lm(dtype=torch.float16), batch, scale=faint)
        return sum(int((found[n][t] == 0).sum()) for n, t in there.items()) / sum(int(t.sum()) for t in there.values())

    carried = lost()
    monkeypatch.setattr("msif.models.capture.HALF_GRADIENT_SCALE", 1.0)
    assert carried < 0.1 < 0.3 < lost()


def spread_spectrum(size=120):
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
    return basis @ torch.diag(torch.logspace(0, -7, size, dtype=torch.float64)) @ basis.T


def test_eigenvectors_of_float32_sums_are_orthogonal_to_its_rounding():
    matrix = spread_spectrum().float()
    values, vectors = eigendecompose(matrix, "m")
    wide = vectors.double()
    assert vectors.dtype == values.dtype == torch.float32
    # as far as the bases that the covariances define are known, whose sums are in float32 themselves
    assert float((wide.T @ wide - torch.eye(len(wide)).double()).abs().max()) < 2e-6
    kept = matrix.double() @ wide - wide * values.double()
    assert float(kept.norm(dim=0).max()) < 2e-6


def test_eigenvectors_are_those_of_the_symmetric_part():
    """Sums of rounded products are symmetric to rounding only, and the decomposition reads one triangle."""
    matrix = spread_spectrum()
    skewed = matrix + 1e-2 * torch.triu(torch.randn_like(matrix), 1)
    values, _ = eigendecompose(skewed, "m")
    torch.testing.assert_close(values, torch.linalg.eigvalsh((skewed + skewed.T) / 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_covariances_of_a_16_bit_model_are_sums_in_float32_of_products_in_float32(dtype):
    model, objective = tiny_lm(dtype=dtype), CausalLM()
    tracked, batch = track_modules(model, "layers"), collate(documents([30, 40, 35]))
    groups = find_input_groups(model, tracked, objective, batch)
    seen = {}

    class Watched(CovariancePass):
        def right(self, module, right):
            seen.setdefault(module.name, []).append((right, None))
            return super().right(module, right)

        def backward(self, module, uses):
            seen[module.name].extend((None, use.left) for use in uses)
            super().backward(module, uses)

    consumer = Watched(tracked, groups, torch.device("cpu"), torch.float32)
    run(model, tracked, objective, [batch] * 40, consumer, FitSettings())
    live = objective.live(batch).flatten()
    for module in tracked:
        x = torch.cat([x.reshape(-1, x.shape[-1])[live] for x, _ in seen[module.name] if x is not None]).double()
        g = torch.cat([g.reshape(-1, g.shape[-1]) for _, g in seen[module.name] if g is not None]).double()
        A, G = consumer.A(groups[module.name])[: module.d_in, : module.d_in], consumer.G(module.name)
        assert A.dtype == G.dtype == torch.float32
        for found, exact in ((A, x.T @ x), (G[0], g[:, : module.block_rows].T @ g[:, : module.block_rows])):
            exact = exact / consumer.counts["positions"]
            assert float((found.double() - exact).norm() / exact.norm()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_factors_are_float32_whatever_the_weights(tmp_path, dtype):
    model = tiny_lm(dtype=dtype)
    store = fit(model, track_modules(model, "mlp"), CausalLM(), [collate(documents([5, 7]))], tmp_path / "f")
    assert store.manifest["run"]["compute_dtype"] == "float32"
    for factors in store.load_all().values():
        assert {tensor.dtype for tensor in vars(factors).values()} == {torch.float32}


class Sure:
    """A generator that draws what rounds to one in float32."""

    def random(self, count):
        return [1 - 1e-12] * count


@pytest.mark.parametrize("classes", [3, 50, 1000])
def test_no_label_is_drawn_that_cannot_be(classes):
    logits = torch.full((1, 2, classes), float("-inf"))
    logits[..., :2] = 0.0
    batch = collate(documents([2]))
    labels = CausalLM().sample(logits, batch, [Sure()])
    assert bool((labels < 2).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_of_16_bit_outputs_are_those_of_their_values_in_float32(dtype):
    batch, objective = collate(documents([9])), CausalLM()
    logits = (4 * torch.randn(1, 9, 3000)).to(dtype)
    exact = objective.losses(logits.double(), batch)
    assert objective.losses(logits, batch).dtype == torch.float32
    torch.testing.assert_close(objective.losses(logits, batch).double(), exact, rtol=1e-5, atol=0.0)
    gradient, wide = objective.loss_gradient(logits, batch), objective.loss_gradient(logits.double(), batch)
    assert gradient.dtype == dtype
    # one rounding, of the result
    assert bool(((gradient.double() - wide).abs() <= torch.finfo(dtype).eps * wide.abs() + 1e-7).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_query_gradients_of_a_16_bit_model_are_sums_in_float32(dtype):
    model, objective, batch = tiny_lm(dtype=dtype), CausalLM(), collate(documents([40]))
    side = Side(model, track_modules(model, "mlp"), objective)
    seen = {}

    class Watched(Consumer):
        def backward(self, module, uses):
            (use,) = uses
            seen[module.name] = use.left[0].double().T @ use.right[0].double()

    with Capture(model, side.tracked, Watched()) as capture:
        capture.run(objective, batch, [objective.loss_gradient])
    for name, vectors in query_gradients(side, [batch]).items():
        exact = seen[name]
        assert vectors.dtype == torch.float32
        assert float((vectors[0, :, : exact.shape[1]].double() - exact).norm() / exact.norm()) < 1e-6


def test_inner_products_of_float32_vectors_are_taken_in_float64():
    large = torch.tensor([[[1e6, 1.0, -1e6]]])
    one = {"m": large, "n": torch.full((1, 1, 3), 1e-3)}
    other = {"m": torch.tensor([[[1e6, 1.0, 1e6]]]), "n": torch.full((1, 1, 3), 1e-3)}
    assert dot(one, other).dtype == torch.float64
    assert float(dot(one, other)) == pytest.approx(1.000003, rel=1e-9)


def test_a_first_token_that_is_marked_is_predicted_by_nothing():
    batch = collate(documents([4, 6]))
    marked = replace(batch, supervised=torch.ones_like(batch.supervised))
    objective = CausalLM()
    assert objective.supervised_counts(marked).tolist() == [5, 5]
    assert not objective.predicting(marked)[:, -1].any() and not objective.live(marked)[:, -1].any()
