"""Optimizers' steps by their states: the root that a parameter's step is divided by."""

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor

from msif.models.training.optimizers import Unusable, dequantised, rule_of, steps_of, unwrapped

STEPS = 40


def stepped(make, shape=(6, 5)):
    """A weight, and its optimizer's state, after steps of gradients with one size for each element."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    size = torch.rand(shape) + 0.2
    optimizer = make([weight])
    for _ in range(STEPS):
        weight.grad = torch.randn(shape) * size
        optimizer.step()
    state = optimizer.state_dict()
    return weight, state["param_groups"][0], state["state"].get(0, {})


def root_of(weight, group, entry):
    rule = rule_of([group], [entry])
    assert rule.shape(entry) in (weight.shape, None)
    root = rule.root(entry, group, weight)
    assert root.shape == weight.shape and root.dtype == torch.float32
    return root


EXACT = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0, betas=(0.0, 0.9)),
    "Adam foreach": lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.0, 0.9), foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.0, 0.9), fused=True),
    "Adam amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0, betas=(0.0, 0.9), amsgrad=True),
    "Adam of a large epsilon": lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.0, 0.9), eps=0.3),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-3, betas=(0.0, 0.9)),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "RMSprop centered": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-3),
    "Adafactor": lambda p: Adafactor(p, lr=1e-3, scale_parameter=False, relative_step=False, clip_threshold=1e9),
    "Adafactor by size": lambda p: Adafactor(p, lr=1e-3, relative_step=False, clip_threshold=1e9),
    "Adafactor of torch": lambda p: torch.optim.Adafactor(p, lr=1e-3, weight_decay=0.0, d=1e9),
}


@pytest.mark.parametrize("shape", [(6, 5), (7,)], ids=["matrix", "vector"])
@pytest.mark.parametrize("name", EXACT)
def test_the_root_is_what_a_step_is_divided_by(name, shape):
    """Without momentum, the last step is η g / root of its state, which is the very one that is saved."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    optimizer = EXACT[name]([weight])
    for _ in range(STEPS):
        before, weight.grad = weight.detach().clone(), torch.randn(shape) * torch.linspace(0.2, 1, shape[-1])
        optimizer.step()
    group, entry = (optimizer.state_dict()["param_groups"][0], optimizer.state_dict()["state"].get(0, {}))
    root = root_of(nn.Parameter(before), group, entry)  # relative steps are by the size before
    torch.testing.assert_close(before - weight.detach(), 1e-3 * weight.grad / root, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "gain"),
    [
        (lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9), 10),
        (lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True), 10),
        (lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, dampening=0.9), 1),
        (lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.5, dampening=0.2), 1.6),
        (lambda p: torch.optim.RMSprop(p, lr=1e-3, alpha=0.9, momentum=0.75), 4),
    ],
)
def test_momentum_adds_up(make, gain):
    """Of a gradient that stays as it is, steps grow to η g (1 − dampening)/(1 − momentum)."""
    weight = nn.Parameter(torch.zeros(3, 2))
    optimizer = make([weight])
    gradient = torch.rand(3, 2) + 0.5
    for _ in range(300):
        before, weight.grad = weight.detach().clone(), gradient.clone()
        optimizer.step()
    state = optimizer.state_dict()
    root = root_of(weight, state["param_groups"][0], state["state"].get(0, {}))
    torch.testing.assert_close(before - weight.detach(), 1e-3 * gradient / root, rtol=0.01, atol=0)
    base = gradient if "square_avg" in state["state"][0] else torch.ones(3, 2)
    torch.testing.assert_close(base / root, torch.full((3, 2), float(gain)), rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", ["AdamW", "RMSprop", "Adafactor"])
def test_states_of_half_precision(make, dtype):
    weight, group, entry = stepped(EXACT[make])
    half = {key: value.to(dtype) if torch.is_tensor(value) and value.dim() else value for key, value in entry.items()}
    torch.testing.assert_close(root_of(weight, group, half), root_of(weight, group, entry), rtol=0.01, atol=1e-3)


def test_steps_are_tensors_numbers_or_the_groups():
    weight, group, entry = stepped(EXACT["AdamW"])
    expected = root_of(weight, group, entry)
    for step in (STEPS, float(STEPS), torch.tensor(STEPS)):
        torch.testing.assert_close(root_of(weight, group, {**entry, "step": step}), expected)
    without = {key: value for key, value in entry.items() if key != "step"}
    torch.testing.assert_close(root_of(weight, {**group, "step": STEPS}, without), expected)  # as apex keeps it
    assert steps_of(without, {**group, "step": 3}) == 3.0


# ---- bitsandbytes


def quantised(values, length, table):
    """Blockwise, by hand: the codes of the nearest of 256 values, by each block's largest."""
    flat = values.flatten()
    blocks = flat.split(length)
    largest = torch.stack([block.abs().max() for block in blocks])
    codes = [(block[:, None] / top - table).abs().argmin(1) for block, top in zip(blocks, largest, strict=True)]
    return torch.cat(codes).to(torch.uint8).view(values.shape), largest


def bits8(V, length=256):
    """Group and entry of bitsandbytes' 8-bit Adam, as its state_dict has them."""
    table = torch.cat([torch.zeros(1), torch.logspace(-6, 0, 255)])
    codes, largest = quantised(V, length, table)
    entry = {"step": 10, "state1": torch.zeros_like(codes), "state2": codes, "qmap2": table, "absmax2": largest}
    group = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "alpha": 0.0, "t_alpha": None}
    return group, entry


@pytest.mark.parametrize("length", [256, 2048])
@pytest.mark.parametrize("wrapped", [False, True])
def test_eight_bits(length, wrapped):
    """Blocks of 256 elements, and of 2048 in earlier versions; later ones wrap the state for sharded trainings."""
    V = torch.rand(90, 70) ** 4 * torch.linspace(1e-6, 1, 70)
    group, entry = bits8(V, length)
    if wrapped:
        entry = unwrapped(
            {"step": 10, "__bnb_optimizer_quant_state__": {k: v for k, v in entry.items() if k != "step"}}
        )
    table, largest = entry["qmap2"], entry["absmax2"].repeat_interleave(length)[: V.numel()].view(V.shape)
    torch.testing.assert_close(dequantised(entry, 2), table[entry["state2"].long()] * largest)
    torch.testing.assert_close(dequantised(entry, 2), V, rtol=0.03, atol=1e-6)
    expected = (dequantised(entry, 2) / (1 - 0.99**10)).sqrt() + 1e-8
    torch.testing.assert_close(root_of(nn.Parameter(V), group, entry), expected)


def test_eight_bits_of_one_scale_and_thirty_two():
    V = torch.rand(90, 70)
    group, entry = bits8(V, V.numel())
    old = {**{key: value for key, value in entry.items() if key != "absmax2"}, "max2": entry["absmax2"]}
    torch.testing.assert_close(dequantised(old, 2), dequantised(entry, 2))
    small = {"step": 10, "state1": torch.zeros(5), "state2": torch.rand(5)}
    expected = (small["state2"] / (1 - 0.99**10)).sqrt() + 1e-8
    torch.testing.assert_close(root_of(nn.Parameter(torch.zeros(5)), group, small), expected)


def test_blocks_of_no_known_length():
    group, entry = bits8(torch.rand(90, 70))
    entry["absmax2"] = entry["absmax2"][:-2]
    with pytest.raises(Unusable, match="6300 moments in 23 blocks"):
        root_of(nn.Parameter(torch.zeros(90, 70)), group, entry)


def test_one_state_of_bitsandbytes():
    """RMSprop and SGD keep one state, under the name of Adam's first."""
    V = torch.rand(5)
    weight = nn.Parameter(torch.zeros(5))
    entry = {"step": 10, "state1": V}
    rmsprop = {"lr": 1e-3, "betas": (0.99, 0), "eps": 1e-8}
    torch.testing.assert_close(root_of(weight, rmsprop, entry), V.sqrt() + 1e-8)
    sgd = {"lr": 1e-3, "betas": (0.9, 0), "eps": 0.0}
    torch.testing.assert_close(root_of(weight, sgd, entry), torch.full((5,), 0.1))


# ---- those whose state does not tell

BITSANDBYTES = {"step": 3, "state1": torch.rand(5)}
UNUSABLE = {
    "Lion": ({"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}, {"exp_avg": torch.rand(5)}),
    "Lion of bitsandbytes": ({"lr": 1e-4, "betas": (0.9, 0.99), "eps": 0.0}, BITSANDBYTES),
    "Adagrad of bitsandbytes": ({"lr": 1e-4, "betas": (0.0, 0.0), "eps": 1e-10}, BITSANDBYTES),
    "AdEMAMix of bitsandbytes": (
        {"lr": 1e-4, "betas": (0.9, 0.999, 0.9999), "eps": 1e-8, "alpha": 5.0},
        {**BITSANDBYTES, "state2": torch.rand(5)},
    ),
    "LAMB of bitsandbytes": (
        {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "alpha": 0.0},
        {**BITSANDBYTES, "state2": torch.rand(5), "unorm_vec": torch.rand(1)},
    ),
    "schedule-free": (
        {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_lr_power": 2.0, "k": 3},
        {"z": torch.rand(5), "exp_avg_sq": torch.rand(5)},
    ),
    "SOAP": (
        {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "precondition_frequency": 10},
        {"step": 3, "exp_avg": torch.rand(5), "exp_avg_sq": torch.rand(5), "GG": []},
    ),
    "Sophia": ({"lr": 1e-4, "betas": (0.9, 0.95), "rho_": 0.04}, {"exp_avg": torch.rand(5), "hessian": torch.rand(5)}),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_optimizers_without_a_scale_are_named(name):
    group, entry = UNUSABLE[name]
    with pytest.raises(Unusable, match=f"is .*{name.split()[0]}.*does not tell the scale of its steps"):
        rule_of([group], [entry])


@pytest.mark.parametrize("name", ["Adagrad", "Adadelta", "Rprop", "ASGD", "Muon"])
def test_optimizers_of_torch_without_a_scale_are_named(name):
    _, group, entry = stepped(lambda p: getattr(torch.optim, name)(p, lr=1e-3))
    with pytest.raises(Unusable, match=f"is {name}, .*does not tell"):
        rule_of([group], [entry])


def test_optimizers_that_are_not_known_are_described():
    with pytest.raises(Unusable, match=r"neither SGD nor Adam.*\(it keeps odd, step\)"):
        rule_of([{"lr": 1e-3, "betas": (0.9, 0.9)}], [{"odd": 1, "step": 2}])
    with pytest.raises(Unusable, match="neither SGD nor Adam"):
        rule_of([{"lr": 1e-3}], [])


def test_adafactor_without_a_rate():
    weight, group, entry = stepped(lambda p: Adafactor(p))
    with pytest.raises(Unusable, match="relative steps"):
        root_of(weight, group, entry)
    weight, group, entry = stepped(lambda p: torch.optim.Adafactor(p, lr=0.5))  # above 1/√40
    with pytest.raises(Unusable, match="at a learning rate above 1/√step"):
        root_of(weight, group, entry)


@pytest.mark.parametrize("group", [{"momentum": 1.0}, {"momentum": 0.9, "dampening": 1.0}, {"momentum": -0.1}])
def test_momentum_without_a_limit(group):
    with pytest.raises(Unusable, match="SGD of momentum"):
        root_of(nn.Parameter(torch.zeros(3)), {"lr": 1.0, "nesterov": False, **group}, {})
