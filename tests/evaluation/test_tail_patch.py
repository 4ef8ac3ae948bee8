"""Tail-patch against steps made by hand on copies of a model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from architectures import tiny_model
from helpers import alone, documents
from transformers.optimization import Adafactor

from msif.data.documents import collate
from msif.errors import MsifError
from msif.evaluation.tail_patch import saved_optimizer, sgd, tail_patch
from msif.models.objectives import CausalLM

OBJECTIVE = CausalLM()
QUERIES = alone(documents([5, 7, 4], seed=1, prompt=2))
DOCUMENTS = dict(enumerate(alone(documents([6, 9, 8, 5], seed=2))))
CHOSEN = [[0, 1], [2, 0], [3, 2]]


def loss(model, batch):
    return OBJECTIVE.losses(OBJECTIVE.outputs(model, batch), batch).sum()


def by_hand(model, step):
    """Changes of the answers' probabilities, each from a copy of its own."""
    changes = np.zeros((3, 2))
    for query, rows in enumerate(CHOSEN):
        for place, row in enumerate(rows):
            other = copy.deepcopy(model).requires_grad_(True).eval()
            count = int(DOCUMENTS[row].supervised.sum())
            (loss(other, DOCUMENTS[row]) / count).backward()
            step(other)
            with torch.no_grad():
                found, was = (float(torch.exp(-loss(m, QUERIES[query]).double())) for m in (other, model))
            changes[query, place] = found - was
    return changes


def manual_sgd(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.5 * parameter.grad


def test_steps_are_those_of_copies_and_nothing_stays():
    model = tiny_model("gpt2").double().train()
    next(model.parameters()).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    found = tail_patch(model, OBJECTIVE, sgd(0.5), QUERIES, DOCUMENTS, CHOSEN)
    changes = np.stack(found.changes)
    np.testing.assert_allclose(changes, by_hand(model.eval(), manual_sgd), rtol=1e-6, atol=1e-15)
    assert np.abs(changes).min() > 0
    np.testing.assert_allclose(found.mean(), changes.mean(1))
    np.testing.assert_allclose(found.mean(1), changes[:, 0])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert flags == [p.requires_grad for p in model.parameters()] and all(p.grad is None for p in model.parameters())


class Elsewhere:
    """A batch on another device: what the model reads is there only once it has been moved."""

    def __init__(self, batch):
        self.batch, self.moved = batch, []

    def to(self, device):
        self.moved.append(device)
        return self.batch


def test_batches_are_moved_to_the_model():
    model = tiny_model("gpt2").double()
    expected = tail_patch(model, OBJECTIVE, sgd(0.5), QUERIES, DOCUMENTS, CHOSEN)
    queries = [Elsewhere(query) for query in QUERIES]
    texts = {row: Elsewhere(text) for row, text in DOCUMENTS.items()}
    found = tail_patch(model, OBJECTIVE, sgd(0.5), queries, texts, CHOSEN)
    assert np.array_equal(found.changes, expected.changes) and np.array_equal(found.before, expected.before)
    device = next(model.parameters()).device
    assert all(batch.moved and set(batch.moved) == {device} for batch in (*queries, texts[0], texts[1], texts[2]))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0),
        lambda p: torch.optim.Adam(p, lr=1e-2),
        lambda p: torch.optim.SGD(p, lr=1e-1, momentum=0.9),
        lambda p: Adafactor(p, lr=1e-2, relative_step=False, scale_parameter=False),
        lambda p: torch.optim.Adafactor(p, lr=1e-2),
    ],
    ids=["adamw", "adam", "momentum", "adafactor", "torch adafactor"],
)
def test_steps_start_from_the_saved_state(make, tmp_path):
    """Of two groups in another order than the model's, as a Trainer has them."""
    model = tiny_model("gpt2").double()
    named = list(model.named_parameters())
    groups = [[p for n, p in named if p.ndim > 1], [p for n, p in named if p.ndim == 1]]
    optimizer = make([{"params": group} for group in groups])
    for seed in range(3):
        optimizer.zero_grad()
        loss(model, collate(documents([6, 8], seed=seed))).backward()
        optimizer.step()
    optimizer.zero_grad()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")

    def step(other):
        again = make([{"params": group} for group in _same(model, other, groups)])
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        again.step()

    expected = by_hand(model.eval(), step)
    for _ in range(2):  # the second time from the same state as the first
        found = tail_patch(model, OBJECTIVE, saved_optimizer(tmp_path, model), QUERIES, DOCUMENTS, CHOSEN)
        np.testing.assert_allclose(found.changes, expected, rtol=1e-5, atol=1e-12)


def _same(model, other, groups):
    twins = {id(p): q for p, q in zip(model.parameters(), other.parameters(), strict=True)}
    return [[twins[id(p)] for p in group] for group in groups]


def test_a_step_that_fails_leaves_the_model_as_it_was():
    model = tiny_model("gpt2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tail_patch(model, OBJECTIVE, lambda m: Failing(m.parameters(), lr=1.0), QUERIES, DOCUMENTS, CHOSEN)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_what_cannot_be(tmp_path):
    model = tiny_model("gpt2")
    for chosen, said in (([[0, 1], [0], []], "one document or more"), ([[0], [1, 2], [9]], "document 9 is chosen")):
        with pytest.raises(MsifError, match=said):
            tail_patch(model, OBJECTIVE, sgd(1.0), QUERIES, DOCUMENTS, chosen)
    with pytest.raises(MsifError, match="reduction is 'max'"):
        tail_patch(model, OBJECTIVE, sgd(1.0), QUERIES, DOCUMENTS, CHOSEN, reduction="max")
    with pytest.raises(MsifError, match=r"there is no optimizer.pt in .*: give the folder of a checkpoint"):
        saved_optimizer(tmp_path, model)
    rms = torch.optim.RMSprop(model.parameters())
    loss(model, DOCUMENTS[0]).backward()
    rms.step()
    torch.save(rms.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(MsifError, match=r"steps of an optimizer that keeps .* are not known: use sgd"):
        saved_optimizer(tmp_path, model)
