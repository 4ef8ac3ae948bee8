"""The estimate of how much factors still move, against the change itself."""

import pytest
import torch

from msif.curvature.convergence import Convergence


def running_means(samples):
    """(count, {name: mean of the first `count` of x xᵀ}) with a small and a large matrix."""
    for count in range(len(samples) + 1):
        x = samples[:count]
        outer = x[:, None, :8, None] * x[:, None, None, :]
        yield count, {"a:A": x.T @ x / max(count, 1), "b:Lambda": outer.pow(2).sum(0) / max(count, 1)}


def sums(count, means):
    return [(name, mean * count, float(count)) for name, mean in means.items()]


def observed(samples):
    """After all samples, each a batch of its own."""
    convergence = Convergence()
    *before, (count, last) = running_means(samples)
    for number, means in before:
        convergence.observe(number, number, lambda number=number, means=means: sums(number, means))
    return convergence, count, last


def test_snapshots_are_taken_as_data_doubles():
    convergence, _, _ = observed(torch.randn(40, 12))
    assert [count for count, _ in convergence.snapshots] == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("count", [16, 64])
def test_sketches_see_the_relative_change_of_the_last_doubling(count):
    torch.manual_seed(1)
    samples = torch.randn(count, 60, dtype=torch.float64)
    convergence, _, last = observed(samples)
    half = dict(running_means(samples))[count // 2]
    changes = convergence.changes(count, sums(count, last))
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
            values.append(convergence.changes(count, sums(count, last))["a:A"] * count**0.5)
        per_doubling.append(sum(values) / len(values))
    assert max(per_doubling) < 1.3 * min(per_doubling)


def test_settled_estimates_and_too_little_data():
    convergence = Convergence()
    means = {"m:A": torch.eye(5)}
    for number in range(5):
        convergence.observe(number, number, lambda number=number: sums(number, means))
    assert convergence.changes(5, sums(5, means)) == {"m:A": pytest.approx(0.0, abs=1e-6)}
    assert convergence.changes(1, sums(1, means)) == {}
    assert Convergence().changes(5, sums(5, means)) == {}
    zero, nothing = Convergence(), {"m:A": torch.zeros(5, 5)}
    zero.observe(1, 1, lambda: sums(1, nothing))
    assert zero.changes(2, sums(2, nothing)) == {"m:A": 0.0}  # not NaN


def test_state_goes_through_a_checkpoint():
    samples = torch.randn(24, 10)
    convergence, count, last = observed(samples)
    again = Convergence()
    again.load_state(*convergence.state())
    assert again.changes(count, sums(count, last)) == convergence.changes(count, sums(count, last))
    # one that is interrupted and taken up again ends with the same snapshots
    first, _, _ = observed(samples[:10])
    resumed = Convergence()
    resumed.load_state(*first.state())
    for number, means in list(running_means(samples))[10:-1]:
        resumed.observe(number, number, lambda number=number, means=means: sums(number, means))
    assert [n for n, _ in resumed.snapshots] == [n for n, _ in convergence.snapshots]
    for (_, one), (_, other) in zip(resumed.snapshots, convergence.snapshots, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
