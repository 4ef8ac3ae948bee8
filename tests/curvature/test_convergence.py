"""The estimate of how much factors still move, against the change itself."""

import pytest
import torch

from msif.curvature.convergence import Convergence


def running_means(samples):
    """(count, {name: mean of the first `count` of x xᵀ}) with a small and a large matrix."""
    for count in range(1, len(samples) + 1):
        x = samples[:count]
        yield count, {"a:A": x.T @ x / count, "b:Lambda": (x[:, None, :8, None] * x[:, None, None, :]).pow(2).mean(0)}


def observed(samples, convergence=None):
    convergence = convergence or Convergence()
    for count, estimates in running_means(samples):
        convergence.observe(count, estimates.items)
    return convergence, count, estimates


def test_snapshots_are_taken_as_data_doubles():
    convergence, _, _ = observed(torch.randn(40, 12))
    assert [count for count, _ in convergence.snapshots] == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("count", [16, 64])
def test_sketches_see_the_relative_change_of_the_last_doubling(count):
    torch.manual_seed(1)
    samples = torch.randn(count, 60, dtype=torch.float64)
    convergence, _, last = observed(samples)
    half = dict(running_means(samples))[count // 2]
    changes = convergence.changes(count, last.items())
    for name, new in last.items():
        exact = float((new - half[name]).norm() / new.norm())
        assert abs(changes[name] - exact) < 0.25 * exact  # 32 probes
    assert changes["a:A"] > 0.1  # far from settled


def test_a_change_between_other_counts_is_brought_to_a_doubling():
    """Means over independent samples: E‖M_N − M_N'‖² ∝ 1/N' − 1/N, whatever N lies between two powers of two."""
    torch.manual_seed(0)
    per_doubling = []
    for count in (33, 40, 48, 56, 64):  # the nearest snapshots are at 16 and 32
        values = []
        for _ in range(6):
            samples = torch.randn(count, 20, dtype=torch.float64)
            convergence, _, last = observed(samples)
            values.append(convergence.changes(count, last.items())["a:A"] * count**0.5)
        per_doubling.append(sum(values) / len(values))
    assert max(per_doubling) < 1.3 * min(per_doubling)


def test_settled_estimates_and_too_little_data():
    convergence = Convergence()
    A = torch.eye(5)
    for count in (1, 2, 4):
        convergence.observe(count, {"m:A": A}.items)
    assert convergence.changes(4, {"m:A": A}.items()) == {"m:A": 0.0}
    assert convergence.changes(1, {"m:A": A}.items()) == {}
    assert Convergence().changes(5, {"m:A": A}.items()) == {}
    zero = Convergence()
    zero.observe(1, {"m:A": 0 * A}.items)
    assert zero.changes(2, {"m:A": 0 * A}.items()) == {"m:A": 0.0}  # not NaN


def test_state_goes_through_a_checkpoint():
    samples = torch.randn(24, 10)
    convergence, count, last = observed(samples)
    again = Convergence()
    again.load_state(*convergence.state())
    assert again.changes(count, last.items()) == convergence.changes(count, last.items())
    # one that is interrupted and taken up again ends with the same snapshots
    first, _, _ = observed(samples[:10])
    resumed = Convergence()
    resumed.load_state(*first.state())
    for number, estimates in list(running_means(samples))[10:]:
        resumed.observe(number, estimates.items)
    assert [n for n, _ in resumed.snapshots] == [n for n, _ in convergence.snapshots]
    for (_, one), (_, other) in zip(resumed.snapshots, convergence.snapshots, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
