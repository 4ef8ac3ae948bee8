"""Fits into a folder: what is there afterwards, and that an interrupted one ends with the same result."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import documents
from safetensors.torch import load_file

import msif
from msif.curvature.fit import FitSettings
from msif.curvature.store import FactorStore, differences
from msif.data.documents import collate
from msif.errors import MsifError


class Interrupted(Exception):
    pass


class Breaking:
    """Batches that fail after some many of them, counted over all passes; the first one is looked at once before."""

    def __init__(self, batches, after):
        self.batches, self.left = batches, after

    def __iter__(self):
        for batch in self.batches:
            if self.left == 0:
                raise Interrupted
            self.left -= 1
            yield batch


class Skipping(Breaking):
    """As a TokenBatches: begins where it is told to."""

    skipped: list

    def iterate(self, skip=0):
        self.skipped = [*getattr(self, "skipped", []), skip]
        return iter(self.batches[skip:])


def data_identity(problem):
    """So that a Breaking and a list are the same data."""
    return {"data": f"{len(problem.batches)} batches"}


def contents(path):
    """Everything in a folder that a fit is responsible for, bit for bit."""
    manifest = json.loads((path / "manifest.json").read_text())
    return {file.name: file.read_bytes() for file in path.glob("*.safetensors")} | {"manifest": manifest}


def test_manifest_says_what_was_fitted_on_what(problem, tmp_path):
    store = problem.fit(tmp_path / "f", identity={"task": "lm"}, provenance={"data": "made up"})
    manifest = json.loads((tmp_path / "f" / "manifest.json").read_text())
    assert manifest == store.manifest
    assert manifest["schema"] == 2 and all(manifest["parts"].values())
    assert set(manifest["parts"]) == {"eigenvectors", "lambda"}
    assert manifest["provenance"] == {"data": "made up", "processes": 1} and manifest["run"]["task"] == "lm"
    assert manifest["run"]["settings"] == {"fisher": "sampled", "label_samples": 1, "seed": 0}
    assert manifest["run"]["compute_dtype"] == "float64"
    assert {"config", "weights"} <= manifest["run"]["model"].keys() and manifest["run"]["data"]
    supervised = sum(int(batch.supervised.sum()) for batch in problem.batches)
    assert manifest["counts"]["sequences"] == 12 and manifest["counts"]["supervised"] == supervised
    assert [module["name"] for module in manifest["modules"]] == [module.name for module in problem.tracked]
    assert store.tracked == problem.tracked
    names = {key.rsplit(":", 1)[1] for key in manifest["convergence"]}
    assert names == {"A", "G", "Lambda"} and all(v >= 0 for v in manifest["convergence"].values())
    assert sorted(file.name for file in (tmp_path / "f").iterdir()) == [
        "layers.0.lambda.safetensors",
        "layers.0.safetensors",
        "layers.1.lambda.safetensors",
        "layers.1.safetensors",
        "manifest.json",
    ]


# batches that are drawn: 1 to look at, 6 for the covariances, 6 for Λ
@pytest.mark.parametrize("after", [2, 6, 8, 12])
def test_a_run_that_failed_in_a_pass_goes_on_where_it_was(problem, tmp_path, after):
    identity = data_identity(problem)
    problem.fit(tmp_path / "whole", identity=identity)
    with pytest.raises(Interrupted):
        problem.fit(tmp_path / "f", identity=identity, batches=Breaking(problem.batches, after), checkpoint_every=0)
    assert (tmp_path / "f" / "checkpoint.safetensors").exists()
    batches = Skipping(problem.batches, 1000)
    problem.fit(tmp_path / "f", identity=identity, batches=batches, checkpoint_every=0)
    assert batches.skipped == ([after - 1, 0] if after < 7 else [after - 7])  # what is done is not done again
    assert contents(tmp_path / "f") == contents(tmp_path / "whole")


def test_without_a_checkpoint_nothing_is_left_of_a_failed_run(problem, tmp_path):
    with pytest.raises(Interrupted):
        problem.fit(tmp_path / "f", identity=data_identity(problem), batches=Breaking(problem.batches, 3))
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("file", [1, 2, 3, 4])
def test_a_run_that_failed_between_two_files_ends_with_the_same_result(problem, finished, tmp_path, monkeypatch, file):
    """Files 1 and 2 are eigenvectors, 3 and 4 Λ of the same layers."""
    calls = []

    def failing(save):
        def saved(self, name, factors):
            calls.append(name)
            if len(calls) == file:
                raise Interrupted
            save(self, name, factors)

        return saved

    for method in ("save_bases", "save_lambda"):
        monkeypatch.setattr(FactorStore, method, failing(getattr(FactorStore, method)))
    with pytest.raises(Interrupted):
        problem.fit(tmp_path / "f")
    with pytest.raises(MsifError, match="incomplete"):
        FactorStore.open(tmp_path / "f")
    calls[:] = ["not this time"] * 10
    problem.fit(tmp_path / "f")
    assert contents(tmp_path / "f") == contents(finished.path)


def test_a_finished_folder_is_returned_without_another_pass(problem, finished):
    before = {file: file.stat().st_mtime_ns for file in finished.path.iterdir()}
    again = problem.fit(finished.path)
    assert again.manifest == finished.manifest
    assert {file: file.stat().st_mtime_ns for file in finished.path.iterdir()} == before


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        (FitSettings(seed=1), r"settings\.seed is 0 there and 1 now"),
        (FitSettings(fisher="empirical"), r"settings\.fisher is \"sampled\" there and \"empirical\" now"),
        (FitSettings(label_samples=3), r"settings\.label_samples is 1 there and 3 now"),
    ],
)
def test_other_settings_are_refused_by_name(problem, finished, settings, difference):
    before = contents(finished.path)
    with pytest.raises(MsifError, match=difference):
        problem.fit(finished.path, settings)
    assert contents(finished.path) == before


def test_other_modules_weights_and_data_are_refused_by_name(problem, problem_of, finished):
    with pytest.raises(MsifError, match=r"modules\.layers\.0\.attention\.dense .* and null now"):
        problem_of("mlp").fit(finished.path)
    unsplit = problem_of()
    unsplit.tracked = msif.track_modules(unsplit.model, "all", False)
    with pytest.raises(MsifError, match=r"modules\.layers\.0\.attention\.query_key_value\.blocks is \[\[0, 4"):
        unsplit.fit(finished.path)
    changed = problem_of()
    with torch.no_grad():
        next(changed.model.parameters())[0, 0] += 1
    with pytest.raises(MsifError, match=r"model\.weights is "):
        changed.fit(finished.path)
    with pytest.raises(MsifError, match=r"data\S* is "):
        problem.fit(finished.path, batches=problem.batches[:-1])


def test_a_folder_of_something_else_is_refused_and_left_alone(problem, tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter 1")
    (tmp_path / ".draft.part").write_text("chapter 2")
    with pytest.raises(MsifError, match=r"holds no manifest\.json"):
        problem.fit(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".draft.part", "thesis.txt"]
    with pytest.raises(MsifError, match="is a file"):
        problem.fit(tmp_path / "thesis.txt")


def test_an_empty_folder_and_one_with_a_torn_first_manifest_are_taken(problem, finished, tmp_path):
    (tmp_path / ".manifest.json.1234.part").write_text("{")
    problem.fit(tmp_path)
    assert {k: v for k, v in contents(tmp_path).items() if k != "manifest"} == {
        k: v for k, v in contents(finished.path).items() if k != "manifest"
    }


def test_leftovers_of_a_killed_run_are_removed(problem, tmp_path):
    problem.fit(tmp_path / "f")
    for name in (".layers.0.safetensors.99.part", ".manifest.json.99.part"):
        (tmp_path / "f" / name).write_text("half")
    problem.fit(tmp_path / "f")
    assert not list((tmp_path / "f").glob(".*"))


def test_a_damaged_checkpoint_costs_a_pass_and_no_more(problem, finished, tmp_path):
    with pytest.raises(Interrupted):
        problem.fit(
            tmp_path / "f", identity=data_identity(problem), batches=Breaking(problem.batches, 4), checkpoint_every=0
        )
    (tmp_path / "f" / "checkpoint.safetensors").write_bytes(b"not tensors")
    problem.fit(tmp_path / "f", identity=data_identity(problem))
    layer = "layers.0.lambda.safetensors"
    assert (tmp_path / "f" / layer).read_bytes() == (finished.path / layer).read_bytes()


def test_the_seed_decides_the_factors(problem, tmp_path):
    fits = {
        name: problem.fit(tmp_path / name, FitSettings(seed=seed)).path
        for name, seed in (("one", 7), ("same", 7), ("other", 8))
    }
    files = ("layers.0.safetensors", "layers.0.lambda.safetensors")
    assert all((fits["one"] / file).read_bytes() == (fits["same"] / file).read_bytes() for file in files)
    one, other = (
        {k: v for file in files for k, v in load_file(fits[name] / file).items()} for name in ("one", "other")
    )
    moved = [key for key in one if not torch.equal(one[key], other[key])]
    assert any(key.endswith(":Lambda") for key in moved) and any(key.endswith(":S_G") for key in moved)
    assert not any(key.endswith((":S_A", ":Q_A")) for key in moved)  # inputs know nothing of labels


def test_data_that_gives_nothing_or_something_else_the_second_time(problem, tmp_path):
    with pytest.raises(MsifError, match="no data"):
        problem.fit(tmp_path / "f", batches=[])
    with pytest.raises(MsifError, match="not an iterator"):
        problem.fit(tmp_path / "f", batches=iter(problem.batches))
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_data_without_a_supervised_token_is_refused_each_time(problem, tmp_path, fisher):
    unsupervised = [replace(batch, supervised=torch.zeros_like(batch.supervised)) for batch in problem.batches]
    path, settings = tmp_path / "f", FitSettings(fisher)
    for batches in (unsupervised, unsupervised[:1], [collate(documents([1, 1]))]):
        for _ in range(2):
            with pytest.raises(MsifError, match="no supervised token to take the curvature over: give"):
                problem.fit(path, settings, batches, identity={"data": "none"}, checkpoint_every=0)
            assert not path.exists()
    mixed = problem.fit(path, settings, [*problem.batches, *unsupervised])
    assert mixed.manifest["counts"]["supervised"] > 0


class Changing:
    """Batches that are others from the Λ pass on: before it are a test of being an iterator, a look, and a pass."""

    def __init__(self, batches, later, turn=0):
        self.batches, self.later, self.turn = batches, later, turn

    def __iter__(self):
        self.turn += 1
        return iter(self.batches if self.turn < 4 else self.later)


def without_last_document(batch):
    return replace(batch, **{name: value[:-1] for name, value in vars(batch).items() if value is not None})


def shortened(batch):
    return replace(batch, supervised=batch.supervised & (torch.arange(batch.supervised.shape[1]) < 3))


def with_a_prompt(batch):
    return replace(batch, supervised=batch.supervised & (torch.arange(batch.supervised.shape[1]) > 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batches: batches[:-1], "12 sequences in the first pass and 10"),
        (lambda batches: [*batches[:-1], without_last_document(batches[-1])], "12 sequences .* and 11"),
        (lambda batches: [*batches, batches[0]], "12 sequences .* and 14"),
        (lambda batches: [*batches[:-1], shortened(batches[-1])], "live positions"),
        (lambda batches: [*batches[:-1], with_a_prompt(batches[-1])], "supervised tokens"),
    ],
)
def test_data_that_changed_between_the_passes_is_refused_each_time(problem, finished, tmp_path, change, message):
    options, later = {"identity": data_identity(problem), "checkpoint_every": 0}, change(problem.batches)
    with pytest.raises(MsifError, match=message):
        problem.fit(tmp_path / "f", batches=Changing(problem.batches, later), **options)
    for _ in range(2):
        with pytest.raises(MsifError, match=message):
            problem.fit(tmp_path / "f", batches=later, **options)
        with pytest.raises(MsifError, match="incomplete"):
            FactorStore.open(tmp_path / "f")
    problem.fit(tmp_path / "f", **options)
    layer = "layers.0.lambda.safetensors"
    assert (tmp_path / "f" / layer).read_bytes() == (finished.path / layer).read_bytes()


def test_settings_are_checked():
    for wrong in ({"fisher": "true"}, {"label_samples": 0}, {"fisher": "empirical", "label_samples": 2}):
        with pytest.raises(MsifError):
            FitSettings(**wrong)


def test_differences_name_leaves():
    here = {"a": {"b": 1, "c": [1]}, "d": 2}
    assert list(differences(here, {"a": {"b": 1, "c": [2]}, "e": 3})) == [
        ("a.c", [1], [2]),
        ("d", 2, None),
        ("e", None, 3),
    ]
