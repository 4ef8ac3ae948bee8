"""What a batch holds until its backward pass, against a count by hand."""

import pytest
import torch
from architectures import tiny_model
from helpers import Classify, DeepLinear, documents, examples, tiny_lm, track_plain

from msif.curvature.activations import Activations
from msif.curvature.probe import Speed, _per_token_and_pair
from msif.data.documents import collate
from msif.models.capture import Capture
from msif.models.objectives import CausalLM
from msif.models.select import track_modules


def counted(model, tracked, objective, batch):
    activations = Activations(model)

    def cotangent(outputs, batch):
        activations.end_of_forward()
        return objective.measurement_gradient(outputs, batch, objective.losses)  # a backward pass of its own

    with Capture(model, tracked, activations) as capture, activations.counting():
        capture.run(objective, batch, [cotangent])
    return (*objective.live(batch).shape, activations.bytes)


def of_lm(model, *lengths):
    return counted(model, track_modules(model, "maps"), CausalLM(), collate(documents(list(lengths))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_maps_hold_their_inputs(dtype):
    """Weights are frozen, so autograd saves none of them; hooks keep each map's input."""
    model = DeepLinear([5, 7, 3]).to(dtype)
    x, y = torch.randn(4, 5).to(dtype), torch.tensor([0, 1, 2, 0])
    (batch,) = examples(x, y)
    assert counted(model, track_plain(model), Classify(), batch) == (4, 1, 4 * (5 + 7) * x.element_size())


def test_it_grows_with_documents_and_layers():
    one, two, three = (of_lm(tiny_lm(num_hidden_layers=layers, hidden_size=16), 8)[2] for layers in (1, 2, 3))
    assert three - two == two - one > 8 * 16 * 8  # more than one tensor of the hidden size
    assert of_lm(tiny_lm(num_hidden_layers=1, hidden_size=16), 8, 8)[2] == pytest.approx(2 * one, rel=0.2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_two_lengths_foretell_a_third(attention):
    """Attention that is written out holds a number for each pair of tokens."""
    model = tiny_model("llama", attention, max_position_embeddings=600)
    a, b = _per_token_and_pair([of_lm(model, 8), of_lm(model, 60)])
    B, T, size = of_lm(model, 500, 500)
    assert a * B * T + b * B * T**2 == pytest.approx(size, rel=0.1)
    assert (b * T > a) == (attention == "eager")


def test_one_length_foretells_by_tokens():
    assert _per_token_and_pair([(1, 8, 80)]) == (10.0, 0.0)
    assert _per_token_and_pair([(1, 8, 80), (4, 8, 480)]) == (15.0, 0.0)


def test_the_batch_that_holds_most_counts():
    """Of two with as many tokens the one of longer documents, where attention is written out."""
    speed = Speed({}, 2.0, 1e-3, *[None] * 8, "cpu", activations=(3.0, 5.0))
    assert speed.held([(4, 10), (1, 39)]) == (8 * 2.0 * 39, 3.0 * 39 + 5.0 * 39**2)


def test_nothing_stays_behind():
    model, batch = tiny_lm(), collate(documents([6]))
    activations = Activations(model)
    with Capture(model, track_modules(model, "maps"), activations) as capture:
        capture.run(CausalLM(), batch, [])
        activations.end_of_forward()
        assert activations.bytes == 0
        with activations.counting():
            capture.run(CausalLM(), batch, [])
            activations.end_of_forward()
        assert activations.bytes > 0 and activations._kept is None
