"""Curvature over all parameters against the dense matrix in float64."""

import pytest
import torch
from helpers import MLP, Classify, documents, examples, tiny_classifier, tiny_lm, track_plain
from test_factors_dense import fitted
from test_ggn import compare
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from msif.curvature.cg import CG, Damped, conjugate_gradients, relative_residual
from msif.curvature.filters import DampedInverse
from msif.curvature.fit import FitSettings
from msif.curvature.ggn import GGN
from msif.curvature.parameter_ggn import ParameterGGN
from msif.curvature.parameter_preconditioner import OverParameters, ParameterDiagonal, parameter_diagonal
from msif.curvature.parameters import ParameterFunction, all_parameters
from msif.curvature.preconditioners import EKFAC, Identity, Preconditioner
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM, SequenceClassification
from msif.models.select import track_modules

DAMPING = 1e-2


def texts(*lengths, seed=0, **options):
    return [collate(documents(list(lengths), seed=seed, **options))]


def dense(model, parameters, objective, batches):
    """(1/N) Σ Jᵀ ∇²L J by autograd, row by row, on the parameters themselves."""
    model.eval()
    weights = [model.get_parameter(p.path) for p in parameters]
    H, supervised = 0.0, 0
    for batch in batches:
        outputs = objective.outputs(model, batch)
        rows = []
        for entry in outputs.flatten():
            grads = torch.autograd.grad(entry, weights, retain_graph=True, allow_unused=True)
            pairs = zip(grads, weights, strict=True)
            rows.append(torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in pairs]))
        J = torch.stack(rows)
        curvature = torch.autograd.functional.hessian(
            lambda o, b=batch, s=outputs.shape: objective.losses(o.view(s), b).sum(), outputs.detach().flatten()
        )
        H = H + J.T @ curvature @ J
        supervised += int(objective.supervised_counts(batch).sum())
    return H / supervised


def flat(vectors, parameters):
    return torch.cat([vectors[p.name].flatten(1) for p in parameters], 1)


def random_vectors(parts, queries=2):
    return {part.name: torch.randn(queries, *part.shape, dtype=torch.float64) for part in parts}


def tied_lm():
    return tiny_lm(tie_word_embeddings=True)


def tiny_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=16)).double()


class Twice(nn.Module):
    """One map that runs twice."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


@pytest.mark.parametrize("build", [tiny_lm, tied_lm, tiny_gpt2])
def test_a_language_model_with_padding_and_prompts(build):
    model, data = build(), texts(5, 7, prompt=2) + texts(4, seed=1)
    parameters = all_parameters(model)
    assert sum(p.shape[0] * p.shape[1] for p in parameters) == sum(p.numel() for p in model.parameters())
    vectors = random_vectors(parameters)
    product = ParameterGGN(model, parameters, CausalLM(), data).matvec(vectors)
    expected = flat(vectors, parameters) @ dense(model, parameters, CausalLM(), data)
    torch.testing.assert_close(flat(product, parameters), expected)


def test_a_classifier_and_a_module_that_runs_twice():
    model, objective = tiny_classifier(), SequenceClassification(pad_token_id=0)
    data, parameters = texts(5, 7, labels=True), all_parameters(model)
    vectors = random_vectors(parameters)
    product = ParameterGGN(model, parameters, objective, data).matvec(vectors)
    torch.testing.assert_close(
        flat(product, parameters), flat(vectors, parameters) @ dense(model, parameters, objective, data)
    )
    model, data = Twice().double(), examples(torch.randn(6, 4).double(), torch.randint(0, 3, (6,)))
    parameters = all_parameters(model)
    vectors = random_vectors(parameters)
    product = ParameterGGN(model, parameters, Classify(), data).matvec(vectors)
    torch.testing.assert_close(
        flat(product, parameters), flat(vectors, parameters) @ dense(model, parameters, Classify(), data)
    )
    compare(model, track_plain(model), Classify(), data)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("modules", [".*", "everything", "lm_head"])
def test_all_parameters_hold_the_unembedding_and_their_products_are_right(modules, tied):
    model = tiny_lm(tie_word_embeddings=tied)
    tracked = track_modules(model, modules)
    unembedding = model.get_output_embeddings()
    holds = [any(model.get_submodule(u.path) is unembedding for u in m.uses) for m in tracked]
    assert sum(holds) == 1 and (len(holds) == 1) == (modules == "lm_head")
    assert not any(model.get_submodule(u.path) is unembedding for m in track_modules(model) for u in m.uses)
    compare(model, tracked, CausalLM(), texts(5, 4))


def test_it_agrees_with_the_products_over_maps_alone():
    model, data = tiny_lm(), texts(5, 7)
    tracked = track_modules(model)
    maps = random_vectors(tracked)
    parameters = [p for p in all_parameters(model) if p.name.rpartition(".")[0] in maps]
    vectors = {}
    for name, V in maps.items():
        vectors[f"{name}.weight"], vectors[f"{name}.bias"] = V[:, :, :-1], V[:, :, -1:].mT
    product = ParameterGGN(model, parameters, CausalLM(), data).matvec(vectors)
    for name, expected in GGN(model, tracked, CausalLM(), data).matvec(maps).items():
        found = torch.cat([product[f"{name}.weight"], product[f"{name}.bias"].mT], 2)
        torch.testing.assert_close(found, expected)


def test_the_model_comes_back_untouched_also_after_an_error():
    model = tiny_lm().train()
    model.get_output_embeddings().weight.requires_grad_(False)
    before = {name: (p, p.data_ptr(), p.requires_grad) for name, p in model.named_parameters()}
    parameters, data = all_parameters(model), texts(4)
    vectors = random_vectors(parameters)
    with torch.no_grad():
        ParameterGGN(model, parameters, CausalLM(), data).matvec(vectors)
    vectors["embed_in.weight"][0] = float("nan")
    with pytest.raises(MsifError, match="NaN"):
        ParameterGGN(model, parameters, CausalLM(), data).matvec(vectors)
    assert model.training and not any(m._forward_hooks for m in model.modules())
    after = {name: (p, p.data_ptr(), p.requires_grad) for name, p in model.named_parameters()}
    assert all(after[name][0] is before[name][0] and after[name][1:] == before[name][1:] for name in before)
    assert all(p.grad is None for p in model.parameters())


def test_bad_input_is_refused():
    model, data = tiny_lm(), texts(4)
    parameters = all_parameters(model)
    with pytest.raises(MsifError, match=r"bfloat16.*float32"):
        all_parameters(tiny_lm(dtype=torch.bfloat16))
    with pytest.raises(MsifError, match="no parameter"):
        all_parameters(nn.ReLU())
    with pytest.raises(MsifError, match="track the same"):
        ParameterGGN(model, parameters, CausalLM(), data).matvec(random_vectors(parameters[1:]))
    with pytest.raises(MsifError, match="no supervised token"):
        ParameterGGN(model, parameters, CausalLM(), texts(3, prompt=3)).matvec(random_vectors(parameters))
    with pytest.raises(MsifError, match="no supervised token"):
        parameter_diagonal(ParameterFunction(model, parameters, CausalLM()), texts(3, prompt=3))
    unused = MLP([4, 3]).double()
    unused.spare = nn.Linear(2, 2).double()
    only = [p for p in all_parameters(unused) if "spare" in p.name]
    with pytest.raises(MsifError, match="depend on none"):
        ParameterGGN(unused, only, Classify(), examples(torch.randn(2, 4).double(), torch.tensor([0, 1]))).matvec(
            random_vectors(only)
        )


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model, objective = tiny_lm(num_hidden_layers=1, intermediate_size=8), CausalLM()
    data = [collate(documents([10, 8, 9, 12], seed=s)) for s in range(3)]
    parameters = all_parameters(model)
    return model, parameters, objective, data, dense(model, parameters, objective, data)


def test_the_diagonal_is_that_of_the_dense_matrix(problem):
    """Unbiased: the error of a sampled mean falls as one over the root of the number of samples."""
    model, parameters, objective, data, H = problem
    function = ParameterFunction(model, parameters, objective)
    errors = []
    for samples in (4, 400):
        diagonal = parameter_diagonal(function, data, label_samples=samples)
        found = flat({name: d[None] for name, d in diagonal.items()}, parameters)[0]
        errors.append(float((found - H.diagonal()).norm() / H.diagonal().norm()))
    assert errors[1] < 0.1 and errors[1] < errors[0] / 4
    again = parameter_diagonal(function, data, label_samples=400)
    assert all(torch.equal(again[name], diagonal[name]) for name in again)


def combined(model, tracked, objective, data, damping):
    parameters = all_parameters(model)
    _, _, factors = fitted(model, tracked, objective, data, FitSettings(label_samples=5))
    diagonal = parameter_diagonal(ParameterFunction(model, parameters, objective), data)
    maps, rest = EKFAC(factors, DampedInverse(damping)), ParameterDiagonal(diagonal, damping)
    return OverParameters(model, tracked, parameters, maps, rest)


def test_cg_solves_the_damped_system_with_and_without_preconditioner(problem):
    model, parameters, objective, data, H = problem
    b = random_vectors(parameters)
    exact = torch.linalg.solve(H + DAMPING * torch.eye(len(H)).double(), flat(b, parameters).T).T
    for approximate in (None, combined(model, track_modules(model), objective, data, DAMPING)):
        operator = ParameterGGN(model, parameters, objective, data)
        solver = CG(operator, parameters, DAMPING, approximate, iterations=200, tolerance=1e-8)
        torch.testing.assert_close(flat(solver.apply(b), parameters), exact, rtol=1e-5, atol=1e-5)
        assert solver.solution.converged


class Shifted(nn.Module):
    """A linear softmax model with a shift of the logits that no map holds."""

    def __init__(self):
        super().__init__()
        self.map, self.shift = nn.Linear(10, 5, bias=False), nn.Parameter(torch.zeros(5))

    def forward(self, x):
        return self.map(x) + self.shift


def test_the_preconditioner_saves_products_where_ekfac_is_nearly_exact():
    torch.manual_seed(0)
    model, objective = Shifted().double(), Classify()
    x = torch.randn(600, 10).double() * torch.logspace(0, -2, 10).double()
    data, parameters = examples(x, torch.randint(0, 5, (600,))), all_parameters(model)
    b = random_vectors(parameters)
    products = []
    for approximate in (None, combined(model, track_plain(model), objective, data, 1e-5)):
        solver = CG(
            ParameterGGN(model, parameters, objective, data),
            parameters,
            1e-5,
            approximate,
            iterations=600,
            tolerance=1e-3,
        )
        solver.apply(b)
        assert solver.solution.converged
        products.append(solver.solution.iterations)
    assert products[1] <= products[0] / 5


@pytest.mark.parametrize("build", [tiny_lm, tied_lm, tiny_gpt2])
@pytest.mark.parametrize("modules", ["layers", "norm|ln_", "embed_in|wte|head", "everything"])
def test_the_preconditioner_sends_each_weight_and_bias_to_its_map(build, modules):
    """With twice a map's vector on the maps and thrice the rest's, in stored and transposed weights."""

    class Times(Preconditioner):
        def __init__(self, factor, shapes):
            self.factor, self.shapes = factor, shapes

        def apply(self, vectors):
            assert {name: tuple(V.shape[1:]) for name, V in vectors.items()} == self.shapes
            rows = {name: torch.arange(V.shape[1]).double()[:, None] for name, V in vectors.items()}
            return {name: self.factor * V + rows[name] for name, V in vectors.items()}

    model = build()
    tracked, parameters = track_modules(model, modules), all_parameters(model)
    weights = {m.name: m.name if m.column_basis == "identity" else f"{m.name}.weight" for m in tracked}
    held = {*weights.values(), *(f"{m.name}.bias" for m in tracked if m.bias)}
    rest = {p.name: p.shape for p in parameters if p.name not in held}
    both = OverParameters(model, tracked, parameters, Times(2, {m.name: m.shape for m in tracked}), Times(3, rest))
    V = random_vectors(parameters)
    found = both.apply(V)
    assert list(found) == list(V)
    for m in tracked:
        rows = torch.arange(m.d_out).double()
        transposed = type(model.get_submodule(m.path)).__name__ == "Conv1D"
        expected = 2 * V[weights[m.name]] + (rows if transposed else rows[:, None])
        torch.testing.assert_close(found[weights[m.name]], expected)
        if m.bias:
            torch.testing.assert_close(found[f"{m.name}.bias"], 2 * V[f"{m.name}.bias"] + rows)
    for name, (rows, _) in rest.items():
        torch.testing.assert_close(found[name], 3 * V[name] + torch.arange(rows).double()[:, None])


def test_a_preconditioner_that_does_not_fit_is_refused(problem):
    model, parameters, *_ = problem
    tracked = track_modules(model)
    without = [p for p in parameters if p.name != f"{tracked[0].name}.bias"]
    with pytest.raises(MsifError, match=r"bias.*not among the parameters"):
        OverParameters(model, tracked, without, Identity(), Identity())
    V = random_vectors(parameters[:1])
    with pytest.raises(MsifError, match="no diagonal"):
        ParameterDiagonal({}, DAMPING).apply(V)
    with pytest.raises(MsifError, match="zeros"):
        ParameterDiagonal({parameters[0].name: torch.zeros(parameters[0].shape)}, 0.0).apply(V)


def test_the_residual_on_other_sequences_is_that_of_the_dense_matrix(problem):
    model, parameters, objective, data, H = problem
    b = random_vectors(parameters)
    own = Damped(ParameterGGN(model, parameters, objective, data), parameters, DAMPING)
    solution = conjugate_gradients(own, b, iterations=25, tolerance=0.0)
    torch.testing.assert_close(relative_residual(own, solution.x, b), solution.residuals[-1], rtol=1e-6, atol=1e-9)
    held_out = [collate(documents([10, 8], seed=9))]
    other = Damped(ParameterGGN(model, parameters, objective, held_out), parameters, DAMPING)
    damped = dense(model, parameters, objective, held_out) + DAMPING * torch.eye(len(H)).double()
    rest = flat(b, parameters) - flat(solution.x, parameters) @ damped
    expected = rest.norm(dim=1) / flat(b, parameters).norm(dim=1)
    torch.testing.assert_close(relative_residual(other, solution.x, b), expected)
    assert bool((expected > solution.residuals[-1]).all())
    with pytest.raises(MsifError, match="right-hand side"):
        relative_residual(own, solution.x, {name: torch.zeros_like(V) for name, V in b.items()})
