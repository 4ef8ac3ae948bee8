"""Fits in groups of modules that fit into memory: the same factors bit for bit, and nothing else held."""

import json

import pytest
import torch
from helpers import VOCABULARY, documents, tiny_lm
from safetensors.torch import load_file
from test_fit import Breaking, Interrupted, contents, data_identity

import msif.curvature.residency as residency
from msif.curvature.covariance import CovariancePass
from msif.curvature.eigenvalues import LambdaPass
from msif.curvature.inputs import find_input_groups
from msif.curvature.residency import Residency, covariance_bytes, decomposition_bytes, lambda_bytes
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM
from msif.models.select import track_modules


@pytest.fixture(scope="module")
def whole(problem_of):
    """All parameters, with a table and norms beside the layers."""
    return problem_of("everything")


@pytest.fixture(scope="module")
def at_once(whole, tmp_path_factory):
    return contents(whole.fit(tmp_path_factory.mktemp("once") / "f", memory=10**9).path)


def largest_file(problem):
    """Bytes that the largest layer takes in either pass."""
    groups = find_input_groups(problem.model, problem.tracked, CausalLM(), problem.batches[0])
    tokens = problem.batches[0].input_ids.numel()
    layers = {}
    for module in problem.tracked:
        layer = module.name.split(".")[1] if module.name.startswith("layers.") else "rest"
        layers.setdefault(layer, []).append(module)

    def sums(modules):
        return sum(covariance_bytes(m, groups[m.name] == m.name, 8) for m in modules) + decomposition_bytes(modules)

    def moments(modules):
        return sum(lambda_bytes(m, groups[m.name] == m.name, 8, tokens) for m in modules)

    return max(map(sums, layers.values())), max(map(moments, layers.values()))


BESIDE = 3  # looks at the data beside passes


def beside(problem):
    """Bytes of the weights and of the first batch's outputs."""
    return (
        8 * sum(p.numel() for p in problem.model.parameters()) + 8 * problem.batches[0].input_ids.numel() * VOCABULARY
    )


class Counted(list):
    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


@pytest.mark.parametrize("times", [1, 2.1, 100])
def test_groups_give_the_same_factors_bit_for_bit(whole, at_once, tmp_path, times):
    batches = Counted(whole.batches)
    memory = beside(whole) + int(times * max(largest_file(whole)))
    assert contents(whole.fit(tmp_path / "f", batches=batches, memory=memory).path) == at_once
    # beside looks at the first batch and at what the data is, two passes or more
    assert (batches.passes - BESIDE > 2) == (times < 100) and batches.passes - BESIDE <= 6


def test_what_does_not_fit_is_told_before_any_pass(whole, tmp_path):
    with pytest.raises(MsifError, match=r"'layers\.0' takes .* give a larger --memory"):
        whole.fit(tmp_path / "f", memory=beside(whole) + max(largest_file(whole)) // 2)
    with pytest.raises(MsifError, match=r"weights take .* and a batch's outputs .*: give more"):
        whole.fit(tmp_path / "f", memory=beside(whole))
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("after", [0.1, 0.3, 0.45, 0.7, 0.95])
@pytest.mark.parametrize(("later", "kind"), [(1, "lambda"), (100, "lambda"), (1, "covariance"), (100, "covariance")])
def test_an_interrupted_group_is_resumed_with_any_memory(whole, tmp_path, monkeypatch, after, later, kind):
    """The kill comes in passes of both kinds, in the first groups and in later ones."""
    identity = data_identity(whole)
    once = contents(whole.fit(tmp_path / "once", identity=identity).path)
    sums, moments = largest_file(whole)
    if kind == "covariance":  # so that it is this pass that comes in groups
        monkeypatch.setattr(residency, "lambda_bytes", lambda *_: 0)
    memory, counted = sums if kind == "covariance" else max(sums, moments), Counted(whole.batches)
    memory += beside(whole)
    whole.fit(tmp_path / "counted", batches=counted, memory=memory)
    passes, options = counted.passes - BESIDE, {"identity": identity, "checkpoint_every": 0.0}
    breaking = Breaking(whole.batches, 1 + int(after * passes * len(whole.batches)))
    with pytest.raises(Interrupted):
        whole.fit(tmp_path / "f", batches=breaking, memory=memory, **options)
    held = load_file(tmp_path / "f" / "checkpoint.safetensors")
    # only the group's own sums, not those of all
    names = {key.split(".", 1)[1] for key in held if key.startswith(("G.", "Lambda."))}
    if any(key.startswith("Lambda.") for key in held) == (kind == "lambda"):
        assert names < {module.name for module in whole.tracked}
    found = contents(whole.fit(tmp_path / "f", memory=later * memory, **options).path)
    assert {name: found[name] for name in found if name != "manifest"} == {
        name: once[name] for name in once if name != "manifest"
    }
    assert found["manifest"]["counts"] == once["manifest"]["counts"]
    assert json.dumps(found["manifest"]["convergence"], sort_keys=True) == json.dumps(
        once["manifest"]["convergence"], sort_keys=True
    )


@pytest.mark.parametrize("modules", ["layers", "everything"])
@pytest.mark.parametrize("tied", [False, True])
def test_bytes_are_those_that_are_held(modules, tied):
    model = tiny_lm(tie_word_embeddings=tied)
    tracked, batch = track_modules(model, modules), collate(documents([5, 7]))
    groups = find_input_groups(model, tracked, CausalLM(), batch)
    covariances = CovariancePass(tracked, groups, torch.device("cpu"), torch.float64)
    held = sum(total.numel() for name, total in covariances.state().items() if name[0] in "AG")
    biases = sum(2 * m.d_in + 1 for m in tracked if m.bias and groups[m.name] == m.name)  # kept apart, as a column
    assert sum(covariance_bytes(m, groups[m.name] == m.name, 8) for m in tracked) == 8 * (held + biases)
    factors = covariances.decompose([m.name for m in tracked])
    moments = LambdaPass(tracked, groups, factors, torch.device("cpu"), torch.float64)
    held = sum(total.numel() for total in moments.state().values())
    more = sum(lambda_bytes(m, groups[m.name] == m.name, 8, 0) for m in tracked)
    assert more - sum(covariance_bytes(m, groups[m.name] == m.name, 8) for m in tracked) == 8 * held


def test_partitions_keep_the_order_and_fill_up(monkeypatch):
    monkeypatch.setattr(Residency, "bytes_of", lambda self, names, part: len(names))
    of = Residency([], {}, 0, 4)
    files = {f"{size}{i}.safetensors": ["x"] * size for i, size in enumerate([3, 2, 2, 4, 1])}
    found = of.partition(files, "lambda", 5)
    assert [[name[0] for name in group] for group in found] == [["3", "2"], ["2"], ["4", "1"]]
    with pytest.raises(MsifError, match="larger --memory"):
        of.partition(files, "lambda", 3)
