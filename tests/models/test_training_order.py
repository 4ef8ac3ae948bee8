"""Which parameters an optimizer's numbers are, against the optimizers of real models."""

import pytest
import torch
from architectures import tiny_model
from torch import nn
from trainings import as_the_trainer_groups

from msif.models.training.order import Misfit, Numbered, Unclear, match_parameters


def groups_of(model, groups, named=False, without_shape=()):
    """What is left of parameter groups in a state."""
    names = {id(p): name for name, p in model.named_parameters()}
    numbers = iter(range(10_000))
    return [
        [
            Numbered(
                place,
                next(numbers),
                None if names[id(p)] in without_shape else p.shape,
                names[id(p)] if named else None,
            )
            for p in group["params"]
        ]
        for place, group in enumerate(groups)
    ]


def right(model, groups, wanted=None, **options):
    """Checks every wanted parameter, by default all, against the groups themselves."""
    wanted = [name for name, _ in model.named_parameters()] if wanted is None else wanted
    placed = match_parameters(groups_of(model, groups, **options), model, wanted)
    numbers = {id(p): number for number, p in enumerate(p for group in groups for p in group["params"])}
    expected = {name: numbers.get(id(p)) for name, p in model.named_parameters() if name in wanted}
    assert {name: one and one.number for name, one in placed.items()} == expected


def frozen(model, *parts):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in parts))
    return model


def matrices(model):
    return [name for name, p in model.named_parameters() if p.requires_grad and p.dim() == 2 and "embed" not in name]


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2", "llama", "opt", "bloom", "gemma2", "qwen3"])
def test_the_trainers_groups(architecture):
    model = tiny_model(architecture)
    right(model, as_the_trainer_groups(model))
    right(model, [{"params": list(model.parameters())}])


def by(model, rule, **options):
    """Two groups: the parameters that a rule gives weight decay, and the others."""
    named = list(model.named_parameters())
    return [{"params": [p for n, p in named if bool(rule(n, p)) == inside], **options} for inside in (True, False)]


def is_norm(name):
    return "norm" in name or "ln_" in name


RULES = {
    "dimensions": lambda name, p: p.dim() > 1,
    "no bias, no class of norms": lambda name, p: "bias" not in name and not is_norm(name),
    "no bias, but the weights of RMS norms": lambda name, p: "bias" not in name,
}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_groups_of_earlier_trainers_and_scripts(architecture, rule, swapped):
    model = tiny_model(architecture)
    groups = by(model, RULES[rule])
    right(model, groups[::-1] if swapped else groups)


@pytest.mark.parametrize("upside_down", [False, True])
@pytest.mark.parametrize("decay", ["together", "decayed first", "decayed last"])
def test_groups_by_layer(decay, upside_down):
    """As for learning rates that fall from layer to layer, from the input on or from the head down."""
    model = tiny_model("llama")
    parts = [("embed",), ("layers.0.",), ("layers.1.",), ("model.norm", "lm_head")]
    groups = []
    for part in parts[::-1] if upside_down else parts:
        own = [p for name, p in model.named_parameters() if any(piece in name for piece in part)]
        split = [[p for p in own if p.dim() > 1], [p for p in own if p.dim() == 1]]
        pair = [own] if decay == "together" else split if decay == "decayed first" else split[::-1]
        groups += [{"params": one} for one in pair]
    right(model, groups)


FROZEN = [("embed",), ("wte", "wpe"), ("norm", "ln_"), ("bias",), ("lm_head",), ("embed", "norm", "lm_head")]


@pytest.mark.parametrize("parts", FROZEN, ids=" ".join)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_frozen_parameters_have_no_number(architecture, parts):
    """All maps of the layers were trained, and are found."""
    model = frozen(tiny_model(architecture), *parts)
    trained = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    for groups in (as_the_trainer_groups(model), trained):
        right(model, groups, [name for name in matrices(model) if "layers" in name or ".h." in name])


def test_maps_that_were_frozen_are_told():
    model = frozen(tiny_model("gpt2"), "mlp")  # whose shapes are their own
    groups = groups_of(model, as_the_trainer_groups(model))
    placed = match_parameters(groups, model, [name for name, p in model.named_parameters() if p.dim() == 2])
    assert {name for name, one in placed.items() if one is None} == {name for name in placed if "mlp" in name}
    # of two neighbours of one shape only names tell
    model = frozen(tiny_model("llama"), "gate_proj")
    groups = groups_of(model, as_the_trainer_groups(model))
    with pytest.raises(Unclear, match=r"\d+ of the model's \d+ parameters"):
        match_parameters(groups, model, ["model.layers.0.mlp.up_proj.weight"])


@pytest.mark.parametrize(
    "parts", [("layers.0.",), ("layers.1.",), ("embed", "layers.0."), ("norm", "layers.1.")], ids=" ".join
)
def test_layers_of_one_shape_are_not_guessed(parts):
    model = frozen(tiny_model("llama"), *parts)
    groups = as_the_trainer_groups(model)
    wanted = [name for name in matrices(model) if "mlp" in name]
    with pytest.raises(Unclear):
        match_parameters(groups_of(model, groups), model, wanted)
    right(model, groups, named=True)


def test_parameters_that_took_no_step():
    """They have a number, but no shape."""
    model = tiny_model("llama")
    right(model, as_the_trainer_groups(model), without_shape=["model.layers.0.mlp.up_proj.weight", "lm_head.weight"])


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._fsdp_wrapped_module."])
def test_names_count_where_there_are_any(prefix):
    """Of `named_parameters`, or the keys of a sharded training put together."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    named = [Numbered(0, 5, torch.Size([3, 3]), f"{prefix}1.weight"), Numbered(0, 6, None, f"{prefix}0.bias")]
    placed = match_parameters([named], model, ["0.weight", "1.weight", "0.bias"])
    assert placed == {"0.weight": None, "1.weight": named[0], "0.bias": named[1]}
    with pytest.raises(Misfit, match=r"lora_A, which the model has not"):
        match_parameters([[Numbered(0, 0, None, "lora_A")]], model, ["0.weight"])
    with pytest.raises(Misfit, match=r"0\.weight, which the model has not in that shape"):
        match_parameters([[Numbered(0, 0, torch.Size([3, 4]), "0.weight")]], model, ["0.weight"])


def test_other_models_are_told_apart():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    def misfit(match, *shapes):
        ones = [Numbered(0, number, torch.Size(shape)) for number, shape in enumerate(shapes)]
        with pytest.raises(Misfit, match=match):
            match_parameters([ones], model, ["0.weight"])

    misfit("5 parameters where the model has 4", (4, 3), (4,), (2, 4), (2,), (2,))
    misfit(r"a parameter of shape \(8, 3\), which none of the model has", (8, 3))  # of an adapter
    misfit("in no order of the model's", (2, 4), (4, 3))
