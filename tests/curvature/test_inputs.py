"""What is computed from inputs once for all modules that read them, in whatever order they read."""

from __future__ import annotations

import pytest
import torch
from helpers import MLP, Classify, dense_gradients, examples, spread, track_plain
from torch import nn

from msif.curvature.covariance import CovariancePass
from msif.curvature.fit import fit
from msif.curvature.inputs import SharedInputs, find_input_groups
from msif.errors import MsifError
from msif.models.blocks import Block, TrackedModule
from msif.models.capture import Capture

ORDERS = {
    "one stream after the other": lambda k, v, x, y: [k(x), v(x), k(y), v(y)],
    "one map after the other": lambda k, v, x, y: [k(x), k(y), v(x), v(y)],
    "the second stream first": lambda k, v, x, y: [k(x), k(y), v(y), v(x)],
}


class Streams(nn.Module):
    """Keys and values of two streams."""

    def __init__(self, order):
        super().__init__()
        self.order, self.k, self.v, self.out = order, nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(torch.tanh(sum(self.order(self.k, self.v, x, torch.tanh(x)))))


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_two_maps_over_two_inputs_share_both(order, tmp_path):
    model, (batch,) = spread(Streams(order)).double(), examples(torch.randn(6, 4).double(), torch.randint(0, 3, (6,)))
    tracked = track_plain(model)
    groups = find_input_groups(model, tracked, Classify(), batch)
    assert groups == {"k": "k", "v": "k", "out": "out"}
    consumer = CovariancePass(tracked, groups, torch.device("cpu"), torch.float64)
    with Capture(model, tracked, consumer) as capture:
        capture.run(Classify(), batch, [Classify().loss_gradient])
    rows = nn.functional.pad(torch.cat([batch.x, torch.tanh(batch.x)]), (0, 1), value=1.0)
    torch.testing.assert_close(consumer.A("k"), rows.T @ rows / len(rows))
    store = fit(model, tracked, Classify(), [batch], tmp_path / "factors")
    dense = dense_gradients(model, tracked, Classify().losses(model(batch.x), batch).sum())
    assert {name: store[name].Lambda.shape[-2:] for name in store} == {name: g.shape for name, g in dense.items()}


def named(*names):
    return [TrackedModule(name, name, 2, 2, False, (Block(0, 2),)) for name in names]


def test_an_input_that_only_some_of_its_group_read_is_told_after_the_batch():
    q, k, v = named("q", "k", "v")
    shared = SharedInputs({"q": "q", "k": "q", "v": "q"})
    x, y = torch.ones(2), torch.ones(2)
    for module in (q, k, v):
        shared.get(module, x, torch.clone)
    shared.check()
    for module, read in ((q, x), (k, x), (v, y)):
        shared.get(module, read, torch.clone)
    with pytest.raises(MsifError, match="modules 'q' and 'v' read one input in the first batch and two"):
        shared.check()
    shared.get(k, x, torch.clone)  # the others did not run
    with pytest.raises(MsifError, match="modules 'k' and 'q'"):
        shared.check()
    shared.get(q, x, torch.clone)
    x.mul_(2)
    for module in (k, v):
        shared.get(module, x, torch.clone)
    with pytest.raises(MsifError, match="two different"):
        shared.check()


def test_a_map_that_does_not_run_is_left_out_of_a_fit(tmp_path, caplog):
    model, (batch,) = MLP([4, 5, 3]).double(), examples(torch.randn(6, 4).double(), torch.randint(0, 3, (6,)))
    model.unused = nn.Linear(4, 4).double()
    store = fit(model, track_plain(model), Classify(), [batch], tmp_path / "factors")
    assert list(store) == ["layers.0", "layers.1"] and "Not tracked: unused" in caplog.text
    with pytest.raises(MsifError, match="depend on no tracked module"):
        fit(model, track_plain(model)[2:], Classify(), [batch], tmp_path / "others")
