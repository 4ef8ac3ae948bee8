"""Products with the Gauss-Newton matrix against the dense matrix in float64."""

import pytest
import torch
from helpers import (
    MLP,
    Classify,
    DeepLinear,
    SquaredError,
    dense_gradients,
    documents,
    examples,
    labelled,
    tiny_classifier,
    tiny_lm,
    track_plain,
)

from msif.curvature.ggn import GGN
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM, MultiLabelClassification, Regression, SequenceClassification
from msif.models.select import track_modules


def dense_ggn(model, tracked, objective, batches):
    """(1/N) Σ Jᵀ ∇²L J with J row by row from autograd's weight gradients."""
    model.eval()
    H, supervised = 0.0, 0
    for batch in batches:
        outputs = objective.outputs(model, batch)
        rows = []
        for entry in outputs.flatten():
            rows.append(torch.cat([g.flatten() for g in dense_gradients(model, tracked, entry).values()]))
        J = torch.stack(rows)
        curvature = torch.autograd.functional.hessian(
            lambda o, b=batch, s=outputs.shape: objective.losses(o.view(s), b).sum(), outputs.detach().flatten()
        )
        H = H + J.T @ curvature @ J
        supervised += int(objective.supervised_counts(batch).sum())
    return H / supervised


def flat(vectors, tracked):
    return torch.cat([vectors[m.name].flatten(1) for m in tracked], 1)


def compare(model, tracked, objective, batches):
    vectors = {m.name: torch.randn(2, *m.shape, dtype=torch.float64) for m in tracked}
    product = GGN(model, tracked, objective, batches).matvec(vectors)
    expected = flat(vectors, tracked) @ dense_ggn(model, tracked, objective, batches)
    torch.testing.assert_close(flat(product, tracked), expected)


def test_a_plain_classifier():
    torch.manual_seed(0)
    model = MLP([4, 5, 3]).double()
    data = examples(torch.randn(6, 4).double(), torch.randint(0, 3, (6,)), size=4)
    compare(model, track_plain(model), Classify(), data)


def test_squared_error_by_the_general_rule():
    torch.manual_seed(0)
    model = DeepLinear([4, 3, 2], bias=False).double()
    compare(model, track_plain(model), SquaredError(), examples(torch.randn(5, 4).double(), torch.randn(5, 2).double()))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_language_model_with_padding_and_prompts(attention):
    model = tiny_lm(attn_implementation=attention)
    texts = documents([5, 7, 4], prompt=2)
    compare(model, track_modules(model), CausalLM(), [collate(texts[:2]), collate(texts[2:])])


def test_a_sequence_classifier():
    model = tiny_classifier()
    data = [collate(documents([5, 7, 4], labels=True))]
    compare(model, track_modules(model, "attention"), SequenceClassification(pad_token_id=0), data)


@pytest.mark.parametrize(
    ("objective", "labels"),
    [
        (Regression(0, 1), [[0.5], [-1.0], [2.0]]),
        (Regression(0, 3), [[0.5, 1, 2], [-1.0, 0, 0], [2.0, 1, 1]]),
        (MultiLabelClassification(0, 3), [[1, 0, 1], [0, 0, 0], [1, 1, 0]]),
    ],
)
def test_heads_with_numbers_for_labels(objective, labels):
    model = tiny_classifier(num_labels=objective.count)
    texts = labelled([5, 7, 4], labels)
    compare(model, track_modules(model, "mlp"), objective, [collate(texts[:2]), collate(texts[2:])])


def test_the_model_comes_back_untouched_and_iterators_are_refused():
    model = tiny_lm().train()
    tracked = track_modules(model)
    data = [collate(documents([4]))]
    GGN(model, tracked, CausalLM(), data).matvec({m.name: torch.randn(1, *m.shape).double() for m in tracked})
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(MsifError, match="iterator"):
        GGN(model, tracked, CausalLM(), iter(data))
