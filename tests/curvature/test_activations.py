"""What a batch holds until its backward pass, against a count by hand."""

import pytest
import torch
from helpers import Classify, DeepLinear, documents, examples, tiny_lm, track_plain

from msif.curvature.activations import Activations
from msif.data.documents import collate
from msif.models.capture import Capture
from msif.models.objectives import CausalLM
from msif.models.select import track_modules


def counted(model, tracked, objective, batch):
    activations = Activations(model)
    with Capture(model, tracked, activations) as capture, activations.counting():
        capture.run(objective, batch, [objective.loss_gradient])
    return activations.bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_maps_hold_their_inputs(dtype):
    """Weights are frozen, so autograd saves none of them; hooks keep each map's input."""
    model = DeepLinear([5, 7, 3]).to(dtype)
    x, y = torch.randn(4, 5).to(dtype), torch.tensor([0, 1, 2, 0])
    (batch,) = examples(x, y)
    assert counted(model, track_plain(model), Classify(), batch) == 4 * (5 + 7) * x.element_size()


def test_it_grows_with_tokens_and_layers():
    def held(layers, *lengths):
        model = tiny_lm(num_hidden_layers=layers, hidden_size=16)
        return counted(model, track_modules(model, "maps"), CausalLM(), collate(documents(list(lengths))))

    one, two, three = (held(layers, 8) for layers in (1, 2, 3))
    assert three - two == two - one > 8 * 16 * 8  # more than one tensor of the hidden size
    assert held(1, 8, 8) == pytest.approx(2 * one, rel=0.2)


def test_nothing_stays_behind():
    model = tiny_lm()
    activations = Activations(model)
    with Capture(model, track_modules(model, "maps"), activations) as capture:
        capture.run(CausalLM(), collate(documents([6])), [])
        assert activations.bytes == 0
        with activations.counting():
            capture.run(CausalLM(), collate(documents([6])), [])
        once = activations.bytes
        with activations.counting():
            capture.run(CausalLM(), collate(documents([6])), [])
        assert once == activations.bytes > 0 and activations._kept is None
