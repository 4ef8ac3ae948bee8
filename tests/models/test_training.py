"""τ of a stage from what its training left, against the optimizers themselves."""

import json

import pytest
import torch
from helpers import documents, tiny_lm, track_modules
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer

import msif
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.blocks import Block, TrackedModule
from msif.models.objectives import CausalLM
from msif.models.training import natural_tau, training_is_known


def log(folder, history, global_step=None, **more):
    entries = [{"step": step, "learning_rate": rate, "loss": 1.0} for step, rate in history]
    state = {"log_history": [*entries, {"step": 7, "eval_loss": 2.0}], **more}
    (folder / "trainer_state.json").write_text(
        json.dumps(state | ({"global_step": global_step} if global_step else {}))
    )


def trained(model, optimizer, steps=3):
    """A few real steps."""
    batch = collate(documents([6, 5, 7]))
    for _ in range(steps):
        optimizer.zero_grad()
        CausalLM().losses(CausalLM().outputs(model, batch), batch).sum().backward()
        optimizer.step()


def as_the_trainer_groups(model):
    """The parameter groups of `Trainer.create_optimizer`, by the installed version's own rule."""
    decayed = Trainer.get_decay_parameter_names(None, model)
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if name in decayed], "weight_decay": 0.1},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]


@pytest.fixture
def lm():
    model = tiny_lm()
    return model, track_modules(model)


def values(tau):
    """The distinct values, in order."""
    return sorted({float(value) for block in tau.values() for value in block})


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_the_learning_rate_summed_over_steps(lm, tmp_path, momentum):
    model, tracked = lm
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum)
    trained(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    log(tmp_path, [(step, 0.01) for step in range(1, 401)], 400)
    tau = natural_tau(tmp_path, model, tracked)
    assert {name: len(value) for name, value in tau.items()} == {m.name: len(m.blocks) for m in tracked}
    assert values(tau) == [pytest.approx(4.0 / (1 - momentum))]
    assert values(natural_tau(tmp_path, model, tracked, 2.0)) == [pytest.approx(2.0 / (1 - momentum))]


def test_a_sum_that_is_given_needs_no_files(lm, tmp_path):
    assert values(natural_tau(tmp_path / "none", *lm, learning_rate_sum=3.0)) == [3.0]


@pytest.mark.parametrize("grouped", [True, False])
def test_adam_divides_by_each_blocks_own_mean_root(lm, tmp_path, grouped):
    model, tracked = lm
    parameters = as_the_trainer_groups(model) if grouped else model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=0.01, betas=(0.9, 0.95), eps=1e-3)
    trained(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    log(tmp_path, [(1, 0.01), (2, 0.01), (3, 0.01)], 3)
    tau = natural_tau(tmp_path, model, tracked)
    for module in tracked:
        V = optimizer.state[model.get_submodule(module.path).weight]["exp_avg_sq"] / (1 - 0.95**3)
        expected = [0.03 / (V[b.start : b.stop].sqrt() + 1e-3).mean() for b in module.blocks]
        torch.testing.assert_close(tau[module.name].double(), torch.stack(expected), rtol=1e-5, atol=0.0)
    assert len(values(tau)) == sum(len(module.blocks) for module in tracked)


def test_adam_on_transposed_weights(tmp_path):
    """GPT-2's Conv1D keeps (d_in, d_out): blocks are columns there."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=32)
    model = GPT2LMHeadModel(config).double()
    tracked = track_modules(model)
    optimizer = torch.optim.AdamW(as_the_trainer_groups(model), lr=0.01, eps=1e-3)
    trained(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    tau = natural_tau(tmp_path, model, tracked, 0.03)
    (module,) = [module for module in tracked if module.name.endswith("attn.c_attn")]
    V = optimizer.state[model.get_submodule(module.path).weight]["exp_avg_sq"] / (1 - 0.999**3)
    expected = [0.03 / (V[:, b.start : b.stop].sqrt() + 1e-3).mean() for b in module.blocks]
    torch.testing.assert_close(tau[module.name].double(), torch.stack(expected), rtol=1e-5, atol=0.0)


def test_adam_on_an_embedding_is_averaged_over_all_tokens(tmp_path):
    model = tiny_lm()
    tracked = track_modules(model, "everything")[:1]
    optimizer = torch.optim.AdamW(as_the_trainer_groups(model), lr=0.01, eps=1e-3)
    trained(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    V = optimizer.state[model.get_input_embeddings().weight]["exp_avg_sq"] / (1 - 0.999**3)
    expected = 0.03 / (V.sqrt() + 1e-3).mean().view(1)
    found = natural_tau(tmp_path, model, tracked, 0.03)["embed_in"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0.0)


def adam_of_one_map(folder, V, epsilon=0.5, step=1):
    """τ of a linear map of one block under Adam with this second moment after one step; Σ η = 3, β₂ = 1/2."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    group = {"lr": 3.0, "betas": (0.9, 0.5), "eps": epsilon, "params": [0]}
    entry = {"exp_avg_sq": torch.as_tensor(V), "step": torch.tensor(float(step))}
    torch.save({"state": {0: entry}, "param_groups": [group]}, folder / "optimizer.pt")
    tracked = [TrackedModule("map", "0", 3, 2, False, (Block(0, 2),))]
    return natural_tau(folder, model, tracked, 3.0)["map"].tolist()


def test_the_damping_is_averaged_and_not_the_time_by_hand(tmp_path):
    """V̂ = 2V after one step; √V̂ = 2, 4, 6 twice over: the dampings (2.5 + 4.5 + 6.5)/3 = 4.5 by Σ η = 3 are 1.5."""
    V = [[2.0, 8.0, 18.0], [2.0, 8.0, 18.0]]
    assert adam_of_one_map(tmp_path, V) == [pytest.approx(1 / 1.5)]
    # parameters that never saw a gradient bring ε and no more: (4.5 + 0.5)/2 by 3; by times they would have the say
    assert adam_of_one_map(tmp_path, [V[0], [0.0] * 3]) == [pytest.approx(3 / 2.5)]
    assert adam_of_one_map(tmp_path, [V[0], [0.0] * 3], 1e-8) == [pytest.approx(3 / 2.0)]
    # a block that never moved has only ε
    assert adam_of_one_map(tmp_path, [[0.0] * 3] * 2) == [pytest.approx(3 / 0.5)]


@pytest.mark.parametrize(
    ("V", "epsilon"),
    [([[1.0, float("nan"), 1.0]] * 2, 0.5), ([[float("inf"), 1.0, 1.0]] * 2, 0.5), ([[0.0] * 3] * 2, 0)],
)
def test_moments_that_give_no_scale(tmp_path, V, epsilon):
    with pytest.raises(MsifError, match=r"second moments of 0\.weight .* give no scale .*numbers for --damping"):
        adam_of_one_map(tmp_path, V, epsilon)


def test_moments_before_the_first_step(tmp_path):
    with pytest.raises(MsifError, match=r"does not fit the model \(no step was taken for 0\.weight\)"):
        adam_of_one_map(tmp_path, [[1.0] * 3] * 2, step=0)


def test_training_is_known_where_both_files_are(tmp_path):
    known = []
    for name in ("trainer_state.json", "optimizer.pt"):
        known.append(training_is_known(tmp_path))
        (tmp_path / name).touch()
    assert [*known, training_is_known(str(tmp_path))] == [False, False, True]


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2", "llama", "opt", "bloom", "gemma2"])
def test_the_order_is_the_trainers(architecture):
    from architectures import tiny_model

    from msif.models.training import _trainer_order

    model = tiny_model(architecture)
    decayed = Trainer.get_decay_parameter_names(None, model)
    names = [name for name, _ in model.named_parameters()]
    assert _trainer_order(model) == [n for n in names if n in decayed] + [n for n in names if n not in decayed]


def test_gaps_in_the_log_are_bridged(lm, tmp_path):
    """A linear decay, logged every 100 of 1000 steps: Σ η is the area under it."""
    torch.save(torch.optim.SGD(lm[0].parameters(), lr=1.0).state_dict(), tmp_path / "optimizer.pt")
    log(tmp_path, [(step, 1e-3 * (1 - step / 1000)) for step in range(100, 1001, 100)], 1000)
    assert values(natural_tau(tmp_path, *lm)) == [pytest.approx(0.5, rel=0.02)]
    log(tmp_path, [(500, 1e-3)], 1000)  # one entry stands for all steps
    assert values(natural_tau(tmp_path, *lm)) == [pytest.approx(1.0)]


def refused(match, *arguments):
    with pytest.raises(MsifError, match=match) as caught:
        natural_tau(*arguments)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(lm, tmp_path):
    model, tracked = lm
    refused(r"no trainer_state\.json in .*--learning-rate-sum", tmp_path, model, tracked)
    log(tmp_path, [(1, 0.1)], 1)
    refused(r"no optimizer\.pt beside", tmp_path, model, tracked)
    torch.save(torch.optim.SGD(model.parameters(), lr=1.0).state_dict(), tmp_path / "optimizer.pt")
    log(tmp_path, [])
    refused("logs no learning_rate", tmp_path, model, tracked)
    log(tmp_path, [(1, 0.0)], 1)
    refused("sum to 0", tmp_path, model, tracked)
    for damage in ("{", "[]", '{"log_history": [{"step": 1, "learning_rate": "fast"}]}', '{"log_history": 3}'):
        (tmp_path / "trainer_state.json").write_text(damage)
        refused(r"trainer_state\.json cannot be read", tmp_path, model, tracked)


def test_optimizer_states_that_cannot_be_used(lm, tmp_path):
    model, tracked = lm
    log(tmp_path, [(1, 0.1)], 1)
    file = tmp_path / "optimizer.pt"
    file.write_bytes(b"not a pickle")
    refused(r"optimizer\.pt cannot be read", tmp_path, model, tracked)
    for strange in ({}, [1], {"state": {}, "param_groups": []}):
        torch.save(strange, file)
        refused(r"optimizer\.pt holds no state of an optimizer", tmp_path, model, tracked)

    def adam(parameters, steps=1):
        optimizer = torch.optim.AdamW(parameters, lr=0.1)
        if steps:
            trained(model, optimizer, steps)
        torch.save(optimizer.state_dict(), file)

    adam(list(model.parameters())[:-1])
    refused("does not fit the model .* parameters where the model has", tmp_path, model, tracked)
    adam(list(model.parameters())[::-1])
    refused("does not fit the model .*shape", tmp_path, model, tracked)
    adam(model.parameters(), steps=0)
    refused("does not fit the model .*no second moment for", tmp_path, model, tracked)
    torch.save(torch.optim.RMSprop(model.parameters()).state_dict(), file)
    refused("neither SGD nor Adam", tmp_path, model, tracked)


def test_the_library_offers_it(lm, tmp_path):
    tau = msif.natural_tau(tmp_path, *lm, 2.0)
    f = msif.DampedInverse({name: 1 / value for name, value in tau.items()})
    name = next(iter(tau))
    Lambda = torch.rand(len(tau[name]), 3, 2)
    torch.testing.assert_close(f(Lambda, name), 1 / (Lambda + 0.5))
