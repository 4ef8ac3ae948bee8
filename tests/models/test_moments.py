"""Second moments from optimizers' own states, against the optimizers' own steps."""

from __future__ import annotations

import pytest
import torch
from architectures import tiny_model
from helpers import documents
from safetensors.torch import save_file
from transformers.optimization import Adafactor

from msif.data.documents import collate
from msif.models.blocks import stored
from msif.models.objectives import CausalLM
from msif.models.select import track_modules
from msif.models.training.files import TrainingUnknown
from msif.models.training.moments import SecondMoments, factored, second_moments, to_tensors


def trained(name, make, folder, steps=3):
    """A model after a few steps, and what its optimizer keeps by the names of parameters."""
    torch.manual_seed(0)
    model = tiny_model(name)
    optimizer = make(list(model.parameters()))
    for seed in range(steps):
        batch = collate(documents([6, 8], seed=seed))
        optimizer.zero_grad()
        CausalLM().losses(CausalLM().outputs(model, batch), batch).sum().backward()
        optimizer.step()
    optimizer.zero_grad()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return model, {name: optimizer.state[p] for name, p in model.named_parameters()}


def dense(moments, model, module):
    """V of the weight in its stored shape, and of the bias."""
    weight, _ = stored(model, module)
    V = torch.outer(*moments.weight) if isinstance(moments.weight, tuple) else moments.weight
    transposed = tuple(V.shape) != tuple(weight.shape) or "c_" in module.name
    return (V.T if transposed and weight.ndim == 2 else V.reshape(weight.shape)), moments.bias


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_adam(name, tmp_path):
    model, states = trained(name, lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.9, 0.95)), tmp_path)
    tracked = track_modules(model, "everything")
    found = second_moments(tmp_path, model, tracked)
    names = {id(p): name for name, p in model.named_parameters()}
    for module in tracked:
        weight, bias = stored(model, module)
        V, b = dense(found[module.name], model, module)
        torch.testing.assert_close(V, states[names[id(weight)]]["exp_avg_sq"] / (1 - 0.95**3))
        if bias is not None:
            torch.testing.assert_close(b, states[names[id(bias)]]["exp_avg_sq"] / (1 - 0.95**3))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["transformers", "torch", "relative"])
def test_adafactor(name, kind, tmp_path):
    """Also with steps relative to the step's number, of which τ cannot be told but V can."""
    make = {
        "transformers": lambda p: Adafactor(p, lr=1e-3, relative_step=False, scale_parameter=False),
        "relative": lambda p: Adafactor(p, lr=None),
        "torch": lambda p: torch.optim.Adafactor(p, lr=1e-3),
    }[kind]
    model, states = trained(name, make, tmp_path)
    tracked = track_modules(model, "everything")
    found = second_moments(tmp_path, model, tracked)
    names = {id(p): name for name, p in model.named_parameters()}
    for module in tracked:
        weight, _ = stored(model, module)
        state, (V, _) = states[names[id(weight)]], dense(found[module.name], model, module)
        if "row_var" in state:
            expected = state["row_var"] @ state["col_var"] / state["row_var"].mean(-2, keepdim=True)
        elif "exp_avg_sq_row" in state:
            row, column = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
            expected = torch.outer(row / row.mean(), column)
        else:
            expected = state.get("variance", state.get("exp_avg_sq"))
        torch.testing.assert_close(V, expected)


def test_as_a_file_of_tensors(tmp_path):
    model, _ = trained("gpt2", lambda p: torch.optim.Adam(p, lr=1e-3), tmp_path)
    tracked = track_modules(model, "everything")
    whole = second_moments(tmp_path, model, tracked)
    half = {
        name: SecondMoments(factored(one.weight), one.bias) if number % 2 and len(one.weight) > 1 else one
        for number, (name, one) in enumerate(whole.items())
    }
    save_file(to_tensors(model, tracked, half), tmp_path / "v.safetensors")
    again = second_moments(tmp_path / "v.safetensors", model, tracked)
    for name, one in half.items():
        for first, second in zip(_parts(one), _parts(again[name]), strict=True):
            assert torch.equal(first, second)


def _parts(one):
    return [*(one.weight if isinstance(one.weight, tuple) else [one.weight]), *([] if one.bias is None else [one.bias])]


def test_rank_one_has_the_same_sums():
    V = torch.rand(4, 6, dtype=torch.float64)
    rank_one = torch.outer(*factored(V))
    torch.testing.assert_close(rank_one.sum(0), V.sum(0))
    torch.testing.assert_close(rank_one.sum(1), V.sum(1))


def test_what_cannot_be_used(tmp_path):
    model, _ = trained("gpt2", lambda p: torch.optim.SGD(p, lr=1e-3), tmp_path)
    tracked = track_modules(model, "everything")
    with pytest.raises(TrainingUnknown, match="keeps no second moments"):
        second_moments(tmp_path, model, tracked)
    (tmp_path / "lion").mkdir()
    torch.save(
        {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"params": [0]}]}, tmp_path / "lion/optimizer.pt"
    )
    with pytest.raises(TrainingUnknown, match="Lion"):
        second_moments(tmp_path / "lion", model, tracked)
    other, _ = trained("llama", lambda p: torch.optim.Adam(p, lr=1e-3), tmp_path)
    with pytest.raises(TrainingUnknown, match="does not fit the model"):
        second_moments(tmp_path, model, tracked)
    del other
    save_file({"x": torch.ones(3)}, tmp_path / "v.safetensors")
    with pytest.raises(TrainingUnknown, match="has no second moments of"):
        second_moments(tmp_path / "v.safetensors", model, tracked)
    (weight, _) = stored(model, tracked[0])
    save_file({"transformer.wte.weight": torch.ones(3)}, tmp_path / "v.safetensors")
    with pytest.raises(TrainingUnknown, match=r"of shape \(3,\) for transformer.wte.weight"):
        second_moments(tmp_path / "v.safetensors", model, tracked)
    save_file({"transformer.wte.weight": torch.full_like(weight, torch.nan)}, tmp_path / "v.safetensors")
    with pytest.raises(TrainingUnknown, match="not all above zero"):
        second_moments(tmp_path / "v.safetensors", model, tracked[:1])
