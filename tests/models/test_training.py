"""τ of a stage from what its training left, against the optimizers themselves."""

import logging
import pickle

import pytest
import torch
from helpers import tiny_lm, track_modules
from torch import nn
from trainings import as_the_trainer_groups, leave, trained
from transformers import GPT2Config, GPT2LMHeadModel, get_scheduler
from transformers.optimization import Adafactor

import msif
from msif.errors import MsifError
from msif.models.blocks import Block, TrackedModule
from msif.models.training import natural_tau, training_is_known


@pytest.fixture
def lm():
    model = tiny_lm()
    return model, track_modules(model, "layers")


def values(tau):
    """The distinct values, in order."""
    return sorted({float(value) for block in tau.values() for value in block})


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_the_learning_rate_summed_over_steps(lm, tmp_path, momentum):
    model, tracked = lm
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum)
    leave(tmp_path, trained(model, optimizer), dict.fromkeys(range(1, 401), 0.01), 400)
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
    leave(tmp_path, trained(model, optimizer), dict.fromkeys((1, 2, 3), 0.01), 3)
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
    optimizer = trained(model, torch.optim.AdamW(as_the_trainer_groups(model), lr=0.01, eps=1e-3))
    leave(tmp_path, optimizer)
    tau = natural_tau(tmp_path, model, tracked, 0.03)
    (module,) = [module for module in tracked if module.name.endswith("attn.c_attn")]
    V = optimizer.state[model.get_submodule(module.path).weight]["exp_avg_sq"] / (1 - 0.999**3)
    expected = [0.03 / (V[:, b.start : b.stop].sqrt() + 1e-3).mean() for b in module.blocks]
    torch.testing.assert_close(tau[module.name].double(), torch.stack(expected), rtol=1e-5, atol=0.0)


def test_adam_on_an_embedding_is_averaged_over_all_tokens(tmp_path):
    model = tiny_lm()
    tracked = track_modules(model, "everything")[:1]
    optimizer = trained(model, torch.optim.AdamW(as_the_trainer_groups(model), lr=0.01, eps=1e-3))
    leave(tmp_path, optimizer)
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


def adam(model, **options):
    return torch.optim.AdamW(as_the_trainer_groups(model), **{"lr": 0.01, "eps": 1e-3, **options})


def expected(optimizer, model, module, rate_sum, beta=0.999, steps=3):
    V = optimizer.state[model.get_submodule(module.path).weight]["exp_avg_sq"] / (1 - beta**steps)
    return torch.stack([rate_sum / (V[b.start : b.stop].sqrt() + 1e-3).mean() for b in module.blocks]).float()


def test_a_training_without_a_logged_rate(lm, tmp_path, caplog):
    """Eight steps, logged every 500: optimizer and scheduler tell the rates."""
    model, tracked = lm
    optimizer = adam(model)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=8)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        trained(model, optimizer, 1)
        scheduler.step()
    tau = natural_tau(leave(tmp_path, optimizer, {}, 8, 8, scheduler), model, tracked)
    for module in tracked:
        torch.testing.assert_close(tau[module.name], expected(optimizer, model, module, sum(rates), steps=8))
    assert "no logged rates in 8 steps" in caplog.text


def test_groups_with_rates_of_their_own(lm, tmp_path):
    """Each map's Σ η is its group's; the log is of the first."""
    model, tracked = lm
    parts = [["embed_in", "layers.0."], ["layers.1.", "final_layer_norm", "lm_head"]]
    split = [[p for name, p in model.named_parameters() if any(part in name for part in parts[i])] for i in (0, 1)]
    assert sum(map(len, split)) == len(list(model.parameters()))

    def groups():
        return [{"params": split[0], "lr": 0.01}, {"params": split[1], "lr": 0.002}]

    optimizer = trained(model, torch.optim.AdamW(groups(), eps=1e-3))
    leave(tmp_path, optimizer, dict.fromkeys(range(1, 11), 0.01), 10)
    tau, given = natural_tau(tmp_path, model, tracked), natural_tau(tmp_path, model, tracked, 0.1)
    for module in tracked:
        rate_sum = 0.02 if ".1." in module.name else 0.1
        torch.testing.assert_close(tau[module.name], expected(optimizer, model, module, rate_sum))
        torch.testing.assert_close(given[module.name], tau[module.name])
    leave(tmp_path, torch.optim.SGD(groups()), dict.fromkeys(range(1, 11), 0.01), 10)
    refused("cannot be told which they are", tmp_path, model, tracked)  # SGD keeps no shapes
    optimizer = trained(model, torch.optim.SGD(groups(), momentum=0.5))
    tau = natural_tau(leave(tmp_path, optimizer, dict.fromkeys(range(1, 11), 0.01), 10), model, tracked)
    assert values(tau) == [pytest.approx(0.04), pytest.approx(0.2)]


@pytest.mark.parametrize("parts", [("embed_in",), ("norm", "bias"), ("embed_in", "lm_head", "norm")], ids=" ".join)
def test_frozen_parameters(lm, tmp_path, parts):
    """The optimizer has the others; the model that is loaded says that all are trained."""
    model, tracked = lm
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in parts))
    optimizer = trained(model, adam(model))
    leave(tmp_path, optimizer, dict.fromkeys(range(1, 4), 0.01), 3)
    tau = natural_tau(tmp_path, model.requires_grad_(True), tracked)
    for module in tracked:
        torch.testing.assert_close(tau[module.name], expected(optimizer, model, module, 0.03))


def test_a_map_that_was_frozen_has_no_alpha(lm, tmp_path):
    """It did not move: τ is 0, and 1/τ no number. Without it the others have theirs."""
    model, tracked = lm
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" not in name)
    optimizer = trained(model, adam(model))
    leave(tmp_path, optimizer, dict.fromkeys(range(1, 4), 0.01), 3)
    way = r"has τ = 0 and no finite α: leave out with --modules .*--alpha 0"
    refused(rf"mlp\S+\.weight was frozen .*{way}", tmp_path, model, tracked)
    attention = [module for module in tracked if "mlp" not in module.name]
    assert natural_tau(tmp_path, model, attention).keys() == {module.name for module in attention}
    still = [{"params": list(model.parameters())[:5], "lr": 0.01}, {"params": list(model.parameters())[5:], "lr": 0.0}]
    model.requires_grad_(True)
    leave(tmp_path, trained(model, torch.optim.AdamW(still)), dict.fromkeys(range(1, 4), 0.01), 3)
    refused(f"was frozen .*{way}", tmp_path, model, tracked)
    (tmp_path / "adapter_config.json").touch()
    refused("is an adapter.* says nothing of the weights .*--alpha 0", tmp_path, model, tracked)


def test_layers_that_may_have_been_frozen(lm, tmp_path):
    """Of layers of one shape it cannot be told which, and it is not said that the file is another model's."""
    model, tracked = lm
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0." not in name)
    leave(tmp_path, trained(model, adam(model)), dict.fromkeys(range(1, 4), 0.01), 3)
    refused(r"has \d+ of the model's \d+ parameters, and by their shapes it cannot be told", tmp_path, model, tracked)


def test_sgd_with_frozen_parameters(lm, tmp_path):
    """With momentum it keeps shapes; without it nothing tells which were trained."""
    model, tracked = lm
    model.get_input_embeddings().requires_grad_(False)
    for momentum in (0.5, 0.0):
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = trained(model, torch.optim.SGD(trainable, lr=0.01, momentum=momentum))
        leave(tmp_path, optimizer, dict.fromkeys(range(1, 4), 0.01), 3)
        if momentum:
            assert values(natural_tau(tmp_path, model, tracked)) == [pytest.approx(0.06)]
        else:
            refused("27 of the model's 28 parameters", tmp_path, model, tracked)


def test_adafactors_factors(lm, tmp_path):
    model, tracked = lm
    optimizer = Adafactor(as_the_trainer_groups(model), lr=0.01, scale_parameter=False, relative_step=False)
    leave(tmp_path, trained(model, optimizer), dict.fromkeys(range(1, 4), 0.01), 3)
    tau = natural_tau(tmp_path, model, tracked)
    for module in tracked:
        state = optimizer.state[model.get_submodule(module.path).weight]
        row, column = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
        root = (row[:, None] * column / row.mean()).sqrt()
        means = torch.stack([root[b.start : b.stop].mean() for b in module.blocks])
        torch.testing.assert_close(tau[module.name], (0.03 / means).float())


def refused(match, *arguments):
    with pytest.raises(MsifError, match=match) as caught:
        natural_tau(*arguments)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and "--alpha" in message and "--alpha 0" in message
    return message


def test_what_is_missing_is_named(lm, tmp_path):
    model, tracked = lm
    refused(r"no trainer_state\.json in .*--learning-rate-sum", tmp_path, model, tracked)
    leave(tmp_path, None, {1: 0.1}, 1)
    refused(r"no optimizer\.pt beside .*for a model that was trained by SGD give --learning-rate-sum", tmp_path, *lm)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    leave(tmp_path, sgd, {}, 0)
    refused("logs no learning_rate", tmp_path, model, tracked)
    leave(tmp_path, sgd, {1: 0.0}, 1)
    refused("sum to 0", tmp_path, model, tracked)
    refused("sum to 0", tmp_path, model, tracked, 0.0)
    for damage in ("{", "[]", "3", '{"log_history": 3}', '{"log_history": [1]}', '{"global_step": "many"}', "\xff"):
        (tmp_path / "trainer_state.json").write_text(damage, encoding="latin-1")
        refused(r"trainer_state\.json cannot be read", tmp_path, model, tracked)


def test_a_checkpoint_that_has_it_is_named(lm, tmp_path):
    """`save_model` writes none of it: it is in the folders of checkpoints."""
    leave(tmp_path / "checkpoint-40", torch.optim.SGD(lm[0].parameters(), lr=1.0), {1: 0.1}, 1)
    refused(r"no trainer_state\.json in .*\(checkpoint-40 in it has one: give that folder\)", tmp_path, *lm)


@pytest.mark.parametrize("piece", ["global_step40/", "optimizer_0/", "rank0-of-2-optimizer.pt", "bf16_optim_states.pt"])
def test_optimizers_in_pieces(lm, tmp_path, piece):
    """DeepSpeed's, FSDP's and others': not taken for SGD, also where the sum of rates is given."""
    leave(tmp_path, None, {1: 0.1}, 1)
    (tmp_path / piece).mkdir() if piece.endswith("/") else (tmp_path / piece).touch()
    for given in (None, 3.0):
        refused(rf"no optimizer\.pt in .*in pieces \({piece.rstrip('/')}\)", tmp_path, *lm, given)


def test_a_sharded_training_put_together(lm, tmp_path):
    """accelerate writes it as optimizer.bin, by names."""
    model, tracked = lm
    optimizer = trained(model, adam(model))
    leave(tmp_path, optimizer, dict.fromkeys(range(1, 4), 0.01), 3)
    tau = natural_tau(tmp_path, model, tracked)
    names = {id(p): name for name, p in model.named_parameters()}
    state = {names[id(p)]: entry for p, entry in optimizer.state.items()}
    groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    (tmp_path / "optimizer.pt").unlink()
    torch.save({"state": state, "param_groups": groups}, tmp_path / "optimizer.bin")
    for name, found in natural_tau(tmp_path, model, tracked).items():
        torch.testing.assert_close(found, tau[name])


def test_an_older_file_format(lm, tmp_path):
    model, tracked = lm
    optimizer = trained(model, adam(model))
    leave(tmp_path, optimizer, dict.fromkeys(range(1, 4), 0.01), 3)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt", _use_new_zipfile_serialization=False)
    tau = natural_tau(tmp_path, model, tracked)
    torch.testing.assert_close(tau[tracked[0].name], expected(optimizer, model, tracked[0], 0.03))


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def test_no_pickle_is_run(lm, tmp_path):
    """Neither the Trainer's arguments nor what is put in the place of its states."""
    model, tracked = lm
    leave(tmp_path, trained(model, adam(model)), dict.fromkeys(range(1, 4), 0.01), 3)
    for name in ("training_args.bin", "scheduler.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    natural_tau(tmp_path, model, tracked)
    (tmp_path / "optimizer.pt").write_bytes(pickle.dumps(Trap()))
    refused(r"optimizer\.pt cannot be read", tmp_path, model, tracked)


def test_optimizer_states_that_cannot_be_used(lm, tmp_path):
    model, tracked = lm
    leave(tmp_path, None, {1: 0.1}, 1)
    file = tmp_path / "optimizer.pt"
    file.write_bytes(b"not a pickle")
    refused(r"optimizer\.pt cannot be read", tmp_path, model, tracked)
    for strange in ({}, [1], {"state": {}, "param_groups": []}, {"state": [], "param_groups": [{}]}):
        torch.save(strange, file)
        refused(r"optimizer\.pt holds no state of an optimizer", tmp_path, model, tracked)

    def left(parameters, steps=1):
        optimizer = torch.optim.AdamW(parameters, lr=0.1)
        torch.save(trained(model, optimizer, steps).state_dict() if steps else optimizer.state_dict(), file)

    left([*model.parameters(), nn.Parameter(torch.zeros(3))])
    refused("does not fit the model .* parameters where the model has", tmp_path, model, tracked)
    left(list(model.parameters())[::-1])
    refused("does not fit the model .*shape", tmp_path, model, tracked)
    left(model.parameters(), steps=0)
    refused("does not fit the model .*no second moment for", tmp_path, model, tracked)
    torch.save(torch.optim.Adagrad(model.parameters()).state_dict(), file)
    refused("the optimizer of optimizer.pt in .* is Adagrad, .*: give numbers for --damping", tmp_path, model, tracked)


DAMAGES = {
    "no rate": lambda state: state["param_groups"][0].pop("lr"),
    "a rate in words": lambda state: state["param_groups"][0].update(lr="fast"),
    "no betas": lambda state: state["param_groups"][0].pop("betas"),
    "one beta": lambda state: state["param_groups"][0].update(betas=(0.9,)),
    "no parameters": lambda state: state["param_groups"][0].update(params=None),
    "moments in a list": lambda state: state["state"][1].update(exp_avg_sq=[1.0]),
    "entries that are none": lambda state: state["state"].update({1: 3}),
    "a count of steps in words": lambda state: [entry.update(step="many") for entry in state["state"].values()],
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_states_are_no_stack_traces(lm, tmp_path, kind):
    model, tracked = lm
    state = trained(model, adam(model)).state_dict()
    DAMAGES[kind](state)
    leave(tmp_path, state, dict.fromkeys(range(1, 4), 0.01), 3)
    refused(r"optimizer|what a training left in .* is not as a Trainer writes it", tmp_path, model, tracked)


def test_the_library_offers_it(lm, tmp_path):
    tau = msif.natural_tau(tmp_path, *lm, 2.0)
    f = msif.DampedInverse({name: 1 / value for name, value in tau.items()})
    name = next(iter(tau))
    Lambda = torch.rand(len(tau[name]), 3, 2)
    torch.testing.assert_close(f(Lambda, name), 1 / (Lambda + 0.5))


def test_what_the_trainer_itself_leaves(tmp_path, caplog):
    """A real training, with a frozen embedding and accumulated batches."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Recorder(TrainerCallback):
        rates: list = []  # noqa: RUF012

        def on_pre_optimizer_step(self, *_, optimizer, **__):
            self.rates.append(optimizer.param_groups[0]["lr"])

    model = tiny_lm(dtype=torch.float32, hidden_dropout=0.0, attention_dropout=0.0)
    model.get_input_embeddings().requires_grad_(False)
    rows = [{"input_ids": torch.randint(1, 11, (6,))} for _ in range(8)]
    rows = [{**row, "labels": row["input_ids"]} for row in rows]
    settings = {"max_steps": 12, "warmup_steps": 3, "logging_steps": 4, "save_steps": 12, "learning_rate": 0.01}
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "adam_epsilon": 1e-3}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), **settings, **batches, **quiet),
        train_dataset=rows,
        callbacks=[Recorder()],
    )
    trainer.train()
    tracked = track_modules(model)
    caplog.set_level(logging.INFO, "msif")
    tau = natural_tau(tmp_path / "checkpoint-12", model, tracked)
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    for module in tracked:
        want = expected(optimizer, model, module, sum(Recorder.rates), steps=12)
        torch.testing.assert_close(tau[module.name], want, rtol=1e-4, atol=0)
    assert "schedule: linear after a warm-up of 3 steps" in caplog.text
