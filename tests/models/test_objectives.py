"""Objectives of classification heads: the loss that transformers trains, and Fisher matrices that are its GGN."""

from dataclasses import replace

import pytest
import torch
from helpers import documents, labelled, tiny_classifier

from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.heads import head_objective, label2id, padding_token, problem_of
from msif.models.objectives import (
    CausalLM,
    MultiLabelClassification,
    Regression,
    SequenceClassification,
    categorical,
    generators_for,
)

MULTI = "multi_label_classification"
NUMBERS = [[0.5], [-1.0], [2.0]]
PAIRS = [[0.5, 1.0], [-1.0, 0.0], [2.0, 3.0]]
SETS = [[1, 0, 1], [0, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize(
    ("kind", "settings", "labels"),
    [
        (Regression, {"num_labels": 1}, NUMBERS),
        (Regression, {"num_labels": 1, "problem_type": "regression"}, NUMBERS),
        (Regression, {"num_labels": 2, "problem_type": "regression"}, PAIRS),
        (MultiLabelClassification, {"problem_type": MULTI}, SETS),
        (MultiLabelClassification, {"num_labels": 1, "problem_type": MULTI}, [[1], [0], [1]]),
        (SequenceClassification, {}, None),
        (SequenceClassification, {"problem_type": "single_label_classification"}, None),
    ],
)
def test_the_mean_loss_is_what_transformers_trains(kind, settings, labels):
    model = tiny_classifier(**settings).eval()
    objective = head_objective(model.config)
    assert type(objective) is kind
    texts = documents([5, 7, 3], labels=True) if labels is None else labelled([5, 7, 3], labels)
    batch = collate(texts)
    outputs = objective.outputs(model, batch)
    ours = objective.losses(outputs, batch).sum() / objective.supervised_counts(batch).sum()
    ids = batch.input_ids.masked_fill(batch.attention_mask == 0, model.config.pad_token_id)
    theirs = model(input_ids=ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    torch.testing.assert_close(ours, theirs)


def of(kind):
    """An objective of K = 3 outputs, and a batch of three documents."""
    numbers = [[0.5, 1.0, -2.0], [-1.0, 0.0, 4.0], [2.0, 3.0, 0.1]]
    return kind(0, 3), collate(labelled([5, 7, 3], numbers if kind is Regression else SETS))


@pytest.mark.parametrize("kind", [Regression, MultiLabelClassification])
def test_gradients_and_hessians_are_those_of_the_loss(kind):
    objective, batch = of(kind)
    outputs = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective.losses(outputs, batch).sum(), outputs, create_graph=True)
    torch.testing.assert_close(objective.loss_gradient(outputs, batch), gradient.detach())
    tangent = torch.randn_like(outputs)
    (product,) = torch.autograd.grad(gradient, outputs, tangent)
    torch.testing.assert_close(objective.loss_hessian_product(outputs.detach(), tangent, batch), product)


@pytest.mark.parametrize("kind", [Regression, MultiLabelClassification])
def test_sampled_gradients_have_mean_zero_and_the_hessian_as_their_second_moment(kind):
    """Labels are those of the distribution whose log likelihood the loss is: E[g gᵀ] = ∇²L."""
    objective, batch = of(kind)
    outputs = torch.tensor([[0.0, 1.0, -2.0], [0.3, -0.5, 0.2], [2.0, 0.1, -0.1]], dtype=torch.float64)
    draws = 4000
    gradients = torch.stack(
        [
            objective.sampled_loss_gradient(outputs, batch, generators_for(0, 1, batch.indices, draw))
            for draw in range(draws)
        ]
    )
    expected = torch.stack(
        [
            objective.loss_hessian_product(outputs, torch.eye(3, dtype=torch.float64)[k].expand(3, 3), batch)
            for k in range(3)
        ],
        dim=2,
    )
    moments = torch.einsum("nbi,nbj->bij", gradients, gradients) / draws
    assert (gradients.mean(0).abs() < 5 * (expected.diagonal(dim1=1, dim2=2) / draws).sqrt()).all()
    assert (moments - expected).abs().max() < 0.08 * expected.max()


@pytest.mark.parametrize("kind", [Regression, MultiLabelClassification])
def test_draws_depend_on_the_row_alone(kind):
    objective, batch = of(kind)
    outputs = torch.randn(3, 3)
    together = objective.sample(outputs, batch, generators_for(7, 1, batch.indices))
    for row, index in enumerate(batch.indices):
        alone = objective.sample(outputs[row : row + 1], batch, generators_for(7, 1, index[None]))
        assert torch.equal(together[row], alone[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_a_few_sequences_at_a_time_are_those_of_all(dtype, monkeypatch):
    objective, batch = CausalLM(), collate(documents([5, 7, 3], prompt=2))
    outputs = torch.randn(3, 7, 11).to(dtype)
    drawn = lambda: objective.sampled_loss_gradient(outputs, batch, generators_for(0, 1, batch.indices))  # noqa: E731
    whole = objective.loss_gradient(outputs, batch), drawn()
    monkeypatch.setattr(categorical, "PART_ELEMENTS", 2 * 7 * 11)
    assert torch.equal(objective.loss_gradient(outputs, batch), whole[0]) and torch.equal(drawn(), whole[1])
    assert whole[0].dtype == dtype and not torch.equal(*whole)


def test_low_precision_outputs_are_computed_with_in_float32():
    objective, batch = of(Regression)
    outputs = torch.full((3, 3), 1 / 3).to(torch.bfloat16)
    assert objective.losses(outputs, batch).dtype == torch.float32
    assert objective.sample(outputs, batch, generators_for(0, 1, batch.indices)).dtype == torch.float32
    assert objective.loss_gradient(outputs, batch).dtype == torch.bfloat16


def test_a_saturated_label_is_drawn_as_it_is():
    class Highest:
        def random(self, count):
            return torch.full((count,), 1 - 2**-53, dtype=torch.float64).numpy()

    objective, batch = of(MultiLabelClassification)
    outputs = torch.full((3, 3), 40.0)  # p is 1 in float32
    assert objective.sample(outputs, batch, [Highest()] * 3).eq(1).all()


def test_measurements_are_lower_for_likelier_answers():
    outputs = torch.tensor([[0.5, -1.0, 2.0]])
    batch = collate(labelled([4], [[1, 0, 0]]))
    sets, numbers = MultiLabelClassification(0, 3), Regression(0, 3)
    for name in ("margin", "logit"):
        assert sets.measurement(name)(outputs, batch).tolist() == [-0.5 - 1.0 + 2.0]
    p = torch.sigmoid(outputs)[0]
    odds = (p / (1 - p)).log()
    torch.testing.assert_close(-sets.measurement("margin")(outputs, batch)[0], odds[0] - odds[1] - odds[2])
    assert numbers.measurement("logit")(outputs, batch).tolist() == [-1.5]
    for objective in (sets, numbers, CausalLM()):
        assert objective.measurement("loss")
        with pytest.raises(MsifError, match=r"unknown measurement 'perplexity'.*'loss'"):
            objective.measurement("perplexity")
    with pytest.raises(MsifError, match="unknown measurement 'margin': Regression has 'loss' or 'logit'"):
        numbers.measurement("margin")


def test_labels_that_do_not_fit_the_head():
    objective = Regression(0, 2)
    for batch in (collate(labelled([4], [[1.0]])), collate(documents([4], labels=True))):
        with pytest.raises(MsifError, match=r"1 label\(s\) and the model 2 output\(s\)"):
            objective.losses(torch.zeros(1, 2), batch)
    with pytest.raises(MsifError, match="no labels"):
        objective.losses(torch.zeros(1, 2), collate(documents([4])))


def test_problems_that_cannot_be():
    def config(**changes):
        return tiny_classifier(**changes).config

    odd = config()
    odd.__dict__["problem_type"] = "token_classification"  # some versions of transformers refuse it themselves
    with pytest.raises(MsifError, match="problem_type 'token_classification': write one of single_label"):
        problem_of(odd)
    single = config(num_labels=1)
    single.problem_type = "single_label_classification"
    with pytest.raises(MsifError, match="loss is always zero"):
        problem_of(single)


def test_names_of_labels_from_either_direction():
    config = tiny_classifier().config
    config.id2label, config.label2id = {0: "a", 1: "b", 2: "c"}, {"a": 0, "beta": 1, "z": 7}
    assert label2id(config) == {"a": 0, "b": 1, "c": 2, "beta": 1}


class Pads:
    def __init__(self, pad):
        self.pad_token_id, self.pad_token = pad, "<p>"


@pytest.mark.parametrize(
    ("stored", "tokenizers", "taken"), [(0, 5, 0), (None, 5, 5), (-1, 5, 5), (11, 5, 5), (10, None, 10), (99, 0, 0)]
)
def test_a_classifiers_padding_token(stored, tokenizers, taken):
    config = tiny_classifier().config
    config.pad_token_id = stored
    assert padding_token("m", config, Pads(tokenizers), "classification", 11) == taken
    assert padding_token("m", config, Pads(tokenizers), "lm", 11) == (stored if stored in range(-11, 11) else None)


@pytest.mark.parametrize(("tokenizers", "why"), [(None, "no padding token"), (11, r"'<p>', 11\) is beyond its 11")])
def test_a_classifier_without_a_padding_token(tokenizers, why):
    config = tiny_classifier().config
    config.pad_token_id = -1
    with pytest.raises(MsifError, match=why):
        padding_token("m", config, Pads(tokenizers), "classification", 11)


def test_padding_on_the_left_is_not_live():
    """Its inputs are no part of a covariance."""
    right = collate(documents([3, 5]))
    flipped = {name: getattr(right, name).flip(1) for name in ("input_ids", "attention_mask", "supervised")}
    left = replace(right, **flipped)
    assert CausalLM().live(right).tolist() == [[True] * 2 + [False] * 3, [True] * 4 + [False]]
    assert CausalLM().live(left)[0].tolist()[:2] == [False, False] and CausalLM().live(left)[0, 2:].any()
