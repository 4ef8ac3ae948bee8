"""The model comes back untouched, and what cannot be right is refused with a reason."""

import weakref

import pytest
import torch
from helpers import MLP, Classify, dense_gradients, documents, examples, tiny_lm, track_plain
from torch.utils.checkpoint import checkpoint

from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.capture import Capture, Consumer
from msif.models.objectives import CausalLM, inverse_cdf
from msif.models.select import track_modules


class Collect(Consumer):
    """Per-batch gradients, Σ_z ∇L(z); ``uses`` counts those that were handed over."""

    def __init__(self):
        self.gradients, self.uses = {}, {}

    def backward(self, module, uses):
        assert module.name not in self.gradients  # once for each cotangent
        self.uses[module.name] = len(uses)
        total = 0.0
        for use in uses:
            left = torch.eye(module.d_out, dtype=use.right.dtype)[use.left] if use.lookup else use.left
            weight = torch.einsum("bto,bti->oi", left, use.right)
            total = total + (torch.cat([weight, left.sum((0, 1))[:, None]], 1) if module.bias else weight)
        self.gradients[module.name] = total


def state_of(model):
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    flags = [(p.requires_grad, p.dtype, p.grad is None) for p in model.parameters()]
    return hooks, modes, flags


def mixed_lm():
    model = tiny_lm()
    model.train()
    model.gpt_neox.layers[0].eval()
    model.get_output_embeddings().weight.requires_grad_(False)
    return model


def test_gradients_match_autograd_with_padding_and_frozen_parameters():
    model, objective = mixed_lm(), CausalLM()
    tracked = track_modules(model, "layers")
    batch = collate(documents([4, 7], prompt=2))
    consumer = Collect()
    with Capture(model, tracked, consumer) as capture:
        capture.run(objective, batch, [objective.loss_gradient])
    model.eval()
    dense = dense_gradients(model, tracked, objective.losses(objective.outputs(model, batch), batch).sum())
    for name, gradient in dense.items():
        torch.testing.assert_close(consumer.gradients[name], gradient)


def test_the_model_comes_back_as_it_was_also_after_an_exception():
    model, objective = mixed_lm(), CausalLM()
    before, weights = state_of(model), {k: v.clone() for k, v in model.state_dict().items()}

    class Fails(Collect):
        def backward(self, module, uses):
            raise RuntimeError("stop here")

    for consumer in (Collect(), Fails()):
        try:
            with Capture(model, track_modules(model), consumer) as capture:
                capture.run(objective, collate(documents([4])), [objective.loss_gradient])
        except RuntimeError as error:
            assert "stop here" in str(error)
        assert state_of(model) == before
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_in_place_activations_after_a_module_are_right():
    torch.manual_seed(0)
    model, objective = MLP([4, 6, 6, 3]).double(), Classify()
    tracked = track_plain(model)
    (batch,) = examples(torch.randn(5, 4).double(), torch.randint(0, 3, (5,)))
    consumer = Collect()
    with Capture(model, tracked, consumer) as capture:
        capture.run(objective, batch, [objective.loss_gradient])
    dense = dense_gradients(model, tracked, objective.losses(model(batch.x), batch).sum())
    for name, gradient in dense.items():
        torch.testing.assert_close(consumer.gradients[name], gradient)


def refuse(model, match, tracked=None, objective=None, batch=None):
    objective = objective or Classify()
    (plain,) = examples(torch.randn(5, 4).double(), torch.randint(0, 3, (5,)))
    with pytest.raises(MsifError, match=match), Capture(model, tracked or track_plain(model), Collect()) as capture:
        capture.run(objective, batch or plain, [objective.loss_gradient])


@pytest.mark.parametrize("padding", [None, 3])
def test_a_lookup_adds_to_the_rows_that_it_reads_but_for_a_padding_token(padding):
    model, objective = tiny_lm().eval(), CausalLM()
    model.get_input_embeddings().padding_idx = padding
    (module,) = tracked = track_modules(model, "embed_in")
    batch = collate(documents([4, 7], seed=2))
    assert (batch.input_ids[:, :3] == 3).any()  # read early, so that losses depend on it
    consumer = Collect()
    with Capture(model, tracked, consumer) as capture:
        capture.run(objective, batch, [objective.loss_gradient])
    dense = dense_gradients(model, tracked, objective.losses(objective.outputs(model, batch), batch).sum())
    torch.testing.assert_close(consumer.gradients[module.name], dense[module.name])
    assert bool(consumer.gradients[module.name][3].any()) == (padding is None)


def test_an_input_changed_in_place_is_refused():
    class Changes(MLP):
        def forward(self, x):
            x = self.layers[0](x)
            y = self.layers[1](x)
            x.mul_(2)
            return y + x[:, :3]

    refuse(Changes([4, 6, 3]).double(), "changed in place")


class Twice(MLP):
    def forward(self, x):
        return self.layers[1](torch.tanh(self.layers[0](torch.tanh(self.layers[0](x)))))


class Shared(MLP):
    """Two maps of one weight, each with a bias of its own."""

    def __init__(self, sizes):
        super().__init__(sizes)
        self.layers[1].weight = self.layers[0].weight


@pytest.mark.parametrize(("kind", "sizes"), [(Twice, [4, 4, 3]), (Shared, [4, 4, 4, 3])])
def test_all_uses_of_a_parameter_come_together(kind, sizes):
    """A module that runs twice, or two that share a weight: once for each of several cotangents."""
    torch.manual_seed(0)
    model, objective = kind(sizes).double(), Classify()
    tracked = track_modules(model, "everything")
    (batch,) = examples(torch.randn(5, 4).double(), torch.randint(0, 3, (5,)))
    consumer, found = Collect(), []

    def cotangent(outputs, batch):
        found.append(dict(consumer.gradients))
        consumer.gradients.clear()
        return len(found) * objective.loss_gradient(outputs, batch)

    with Capture(model, tracked, consumer) as capture:
        capture.run(objective, batch, [cotangent, cotangent])
    found.append(consumer.gradients)
    dense = dense_gradients(model, tracked, objective.losses(model(batch.x), batch).sum())
    assert sum(gradient.numel() for gradient in dense.values()) == sum(p.numel() for p in model.parameters())
    assert consumer.uses["layers.0"] == 2 and consumer.uses.keys() == dense.keys()
    for name, gradient in dense.items():
        for times in (1, 2):
            torch.testing.assert_close(found[times][name], times * gradient)


def test_a_use_that_takes_no_part_in_the_outputs_adds_nothing():
    class Unused(MLP):
        def forward(self, x):
            self.layers[0](x + 1)
            return self.layers[1](self.layers[0](x))

    torch.manual_seed(0)
    model, objective = Unused([4, 4, 3]).double(), Classify()
    tracked = track_plain(model)
    (batch,) = examples(torch.randn(5, 4).double(), torch.randint(0, 3, (5,)))
    consumer = Collect()
    with Capture(model, tracked, consumer) as capture:
        capture.run(objective, batch, [objective.loss_gradient])
    dense = dense_gradients(model, tracked, objective.losses(model(batch.x), batch).sum())
    assert consumer.uses == {"layers.0": 1, "layers.1": 1}
    for name, gradient in dense.items():
        torch.testing.assert_close(consumer.gradients[name], gradient)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_is_refused(reentrant):
    class Checkpointed(MLP):
        def forward(self, x):
            x = self.layers[0](x)
            inner = torch.nn.Sequential(self.layers[1], torch.nn.Tanh(), self.layers[2])
            return checkpoint(inner, x, use_reentrant=reentrant)

    refuse(Checkpointed([4, 6, 6, 3]).double(), "checkpointing")


def test_hugging_face_gradient_checkpointing_is_inactive_in_evaluation_mode():
    model, objective = tiny_lm(), CausalLM()
    model.gradient_checkpointing_enable()
    model.train()
    consumer = Collect()
    with Capture(model, track_modules(model), consumer) as capture:
        capture.run(objective, collate(documents([5])), [objective.loss_gradient])
    assert len(consumer.gradients) == 9


def test_routed_rows_are_refused():
    class Routed(MLP):
        def forward(self, x):
            y = x.clone()
            y[:2] = self.layers[0](x[:2])
            return self.layers[1](y)

    refuse(Routed([4, 4, 3]).double(), "routed")


def test_nan_in_weights_names_the_module_and_the_batch():
    model = tiny_lm()
    with torch.no_grad():
        model.gpt_neox.layers[1].mlp.dense_h_to_4h.weight[0, 0] = float("nan")
    batch = collate(documents([4, 5], first_index=30))
    refuse(model, r"layers\.1\.mlp\.dense_h_to_4h.*rows 30–31", track_modules(model), CausalLM(), batch)


def test_eager_and_sdpa_attention_agree():
    gradients = {}
    for kind in ("eager", "sdpa"):
        model, objective, consumer = tiny_lm(attn_implementation=kind), CausalLM(), Collect()
        with Capture(model, track_modules(model), consumer) as capture:
            capture.run(objective, collate(documents([4, 7])), [objective.loss_gradient])
        gradients[kind] = consumer.gradients
    for name, gradient in gradients["eager"].items():
        torch.testing.assert_close(gradient, gradients["sdpa"][name])


def test_gradients_are_zero_at_positions_that_are_not_live():
    """The covariance pass counts on it: G needs no mask."""
    model, objective = tiny_lm(), CausalLM()
    batch = collate(documents([4, 9]))
    live = objective.live(batch)

    class Check(Collect):
        def backward(self, module, uses):
            ((g, _),) = [(use.left, use.right) for use in uses]
            assert torch.all(g[~live] == 0) and torch.any(g[live] != 0)

    with Capture(model, track_modules(model), Check()) as capture:
        capture.run(objective, batch, [objective.loss_gradient])


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 16, 50, 101])
def test_inverse_cdf_is_the_inverse_of_the_cumulative_sum(classes):
    probabilities = torch.rand(200, classes, dtype=torch.float64).softmax(-1)
    probabilities[:, ::3] = 0 if classes > 3 else probabilities[:, ::3]
    uniform = torch.rand(200, dtype=torch.float64)
    uniform[0], uniform[1] = 0.0, 1.0
    labels = inverse_cdf(probabilities, uniform)
    cumulative = probabilities.cumsum(1)
    expected = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(1)
    assert torch.equal(labels[2:], expected[2:])
    assert torch.all((labels >= 0) & (labels < classes))


def test_sampled_labels_follow_the_model():
    logits = torch.tensor([[2.0, 0.0, -1.0, 1.0]]).expand(40_000, -1)
    labels = inverse_cdf(logits.softmax(-1), torch.rand(40_000))
    frequencies = torch.bincount(labels, minlength=4) / 40_000
    torch.testing.assert_close(frequencies, logits[0].softmax(-1), atol=0.01, rtol=0.0)


def test_time_before_batch_is_refused():
    """Rows of other sequences would be mixed, without any other sign of it."""

    class TimeMajor(MLP):
        def forward(self, x):
            return self.layers[1](self.layers[0](x.transpose(0, 1))).transpose(0, 1)[:, 0]

    class Sequences(Classify):
        def outputs(self, model, batch):
            return model(batch.x.unflatten(1, (2, 2)))

        def live(self, batch):
            return torch.ones(len(batch), 2, dtype=torch.bool)

    (batch,) = examples(torch.randn(5, 4).double(), torch.randint(0, 3, (5,)))
    refuse(TimeMajor([2, 4, 3]).double(), "in this order", objective=Sequences(), batch=batch)


def test_inputs_that_a_consumer_does_not_keep_are_released():
    """Memory: with frozen weights nothing but a consumer needs a linear map's input in the backward pass."""
    model, objective = tiny_lm(), CausalLM()
    inputs, alive = [], []

    class Drops(Collect):
        def right(self, module, right):
            return None

        def backward(self, module, uses):
            alive.append(sum(ref() is not None for ref in inputs))

    tracked = track_modules(model)
    with Capture(model, tracked, Collect()) as capture:  # a model's first batch is preceded by a check
        capture.run(objective, collate(documents([5])), [objective.loss_gradient])
    for module in tracked:
        watch = model.get_submodule(module.path)
        watch.register_forward_pre_hook(lambda _, args: inputs.append(weakref.ref(args[0])))
    with Capture(model, tracked, Drops()) as capture:
        capture.run(objective, collate(documents([5])), [objective.loss_gradient])
    assert len(inputs) == 9 and max(alive) == 0
