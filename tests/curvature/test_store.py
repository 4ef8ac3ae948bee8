"""Factors on disk: what is read when, and what is wrong with a folder that cannot be used."""

import errno
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from helpers import Classify, documents, examples, tiny_lm, track_modules, track_plain
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import msif
from msif.curvature import store as store_module
from msif.curvature.filters import DampedInverse
from msif.curvature.preconditioners import EKFAC
from msif.curvature.store import FactorStore, files_of, lambda_file
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM

LAYER = "layers.0.safetensors"


@pytest.fixture
def copied(finished, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(finished.path, tmp_path / "factors")


def change_manifest(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def refused(path, match, exception=MsifError):
    with pytest.raises(exception, match=match) as caught:
        FactorStore.open(path).load_all()
    assert "\n" not in str(caught.value)


def test_a_module_is_read_when_it_is_asked_for(finished, monkeypatch):
    opened = []
    monkeypatch.setattr(
        store_module, "safe_open", lambda path, **options: opened.append(path.name) or safe_open(path, **options)
    )
    store = FactorStore.open(finished.path)
    assert len(store) == 8 and opened == []
    assert "layers.1.mlp.dense_h_to_4h" in store and next(iter(store)) == "layers.0.attention.query_key_value"
    assert opened == []
    store["layers.1.mlp.dense_h_to_4h"]
    assert opened == ["layers.1.safetensors", "layers.1.lambda.safetensors"]


def test_one_file_a_layer_and_each_input_once(finished):
    store = FactorStore.open(finished.path)
    assert sorted(files_of(store.groups)) == ["layers.0.safetensors", "layers.1.safetensors"]
    for file, names in files_of(store.groups).items():
        tensors = load_file(finished.path / file)
        leaders = {store.groups[name] for name in names}
        assert {key for key in tensors if key.endswith(":Q_A")} == {f"{leader}:Q_A" for leader in leaders}
        assert not any(key.endswith(":Lambda") for key in tensors)
        assert load_file(finished.path / lambda_file(file)).keys() == {f"{name}:Lambda" for name in names}


def test_modules_that_read_one_input_share_one_tensor(tmp_path):
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])

        def forward(self, x):
            return self.layers[0](x) * self.layers[1](x)

    model = Twins()
    store = msif.fit(
        model, track_plain(model), Classify(), examples(torch.randn(6, 4), torch.tensor([0, 1, 2] * 2)), tmp_path
    )
    assert set(store.groups.values()) == {"layers.0"}
    assert list(files_of(store.groups).values()) == [["layers.0", "layers.1"]]
    assert "layers.1:Q_A" not in load_file(tmp_path / LAYER)
    everything = store.load_all()
    assert everything["layers.0"].Q_A is everything["layers.1"].Q_A
    assert torch.equal(store["layers.1"].Q_A, everything["layers.0"].Q_A)


@pytest.mark.parametrize("tied", [False, True])
def test_uses_and_bases_come_back(tmp_path, tied):
    model = tiny_lm(tie_word_embeddings=tied)
    tracked = track_modules(model, "everything")
    msif.fit(model, tracked, CausalLM(), [collate(documents([5, 7]))], tmp_path / "f")
    store = FactorStore.open(tmp_path / "f")
    assert store.tracked == tracked and any(module.mixed for module in store.tracked) == tied
    for module in tracked:
        factors, d, blocks = store[module.name], module.shape[1], len(module.blocks)
        assert (factors.Q_A is None) == (module.column_basis == "identity")
        assert (factors.Q_G is None) == (module.row_basis == "identity")
        assert factors.S_A.shape == (d,) and factors.S_G.shape == (blocks, module.block_rows)
        assert factors.Lambda.shape == (blocks, module.block_rows, d) and bool(factors.Lambda.any())
    changed = [replace(module, row_basis="eigenvectors") for module in tracked]
    with pytest.raises(MsifError, match=r"row_basis is \"identity\" there and \"eigenvectors\" now"):
        msif.fit(model, changed, CausalLM(), [collate(documents([5, 7]))], tmp_path / "f")


def test_a_store_is_a_mapping_of_what_was_fitted(finished):
    store = FactorStore.open(finished.path)
    everything = store.load_all()
    for name, factors in store.items():
        for field, value in vars(factors).items():
            assert torch.equal(value, getattr(everything[name], field))
        assert torch.allclose(factors.Q_A.T @ factors.Q_A, torch.eye(len(factors.Q_A)).to(factors.Q_A))
        assert (factors.S_A.diff() >= 0).all() and (factors.Lambda >= 0).all()
    with pytest.raises(KeyError, match="no such module"):
        store["no such module"]
    with pytest.raises(MsifError, match="no factors for module 'no such module'"):
        EKFAC(store, DampedInverse()).apply({"no such module": torch.zeros(1, 2, 2)})


def test_folders_that_hold_no_factors(tmp_path):
    refused(tmp_path / "none", "no folder of factors")
    refused(tmp_path, r"no manifest\.json")


def test_another_schema(copied):
    change_manifest(copied, schema=1)
    refused(copied, "is of schema 1, and this version reads schema 2")


@pytest.mark.parametrize("part", ["eigenvectors", "lambda"])
def test_incomplete_factors(copied, part):
    parts = json.loads((copied / "manifest.json").read_text())["parts"]
    change_manifest(copied, parts={**parts, part: False})
    refused(copied, f"incomplete \\({part} is missing\\): run msif.fit_factors again")
    del parts[part]
    change_manifest(copied, parts=parts)
    refused(copied, "incomplete")


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"schema": 2}', b"[1, 2]", b"null", b"\xff\xfe\x00", b'{"schema": 2, "parts": {}}']
)
def test_damaged_manifests(copied, damage):
    (copied / "manifest.json").write_bytes(damage)
    refused(copied, "is damaged|no manifest of factors")


@pytest.mark.parametrize(("file", "kind"), [(LAYER, "Q_G"), (lambda_file(LAYER), "Lambda")])
def test_damaged_layers(copied, file, kind):
    layer = copied / file
    whole = layer.read_bytes()
    for damaged in (whole[:-8], b""):
        layer.write_bytes(damaged)
        refused(copied, f"{file} cannot be read")
    layer.unlink()
    refused(copied, f"{file} cannot be read")
    layer.write_bytes(whole)
    tensors = load_file(layer)
    name = f"layers.0.mlp.dense_h_to_4h:{kind}"
    save_file({key: value for key, value in tensors.items() if key != name}, layer)
    refused(copied, f"lacks {name}")
    tensors[name][0, 0, 0] = float("nan")
    save_file(tensors, layer)
    refused(copied, f"NaN or infinity in {name}")


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["save_file", "replace"])
def test_a_full_disk_leaves_nothing(problem, tmp_path, monkeypatch, where):
    if where == "save_file":
        monkeypatch.setattr(store_module, "save_file", no_space)
    else:
        monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(MsifError, match="disk is full"):
        problem.fit(tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_halfway_leaves_whole_files(problem, finished, tmp_path, monkeypatch):
    calls = []

    def filling(tensors, path, metadata=None):
        calls.append(path)
        path.write_bytes(b"half a file")
        if len(calls) == 3:  # the covariances' sums, the first layer, then no more
            raise RuntimeError("I/O error: No space left on device (os error 28)")  # as safetensors says it
        save_file(tensors, path, metadata)

    monkeypatch.setattr(store_module, "save_file", filling)
    with pytest.raises(MsifError, match=r"disk is full while writing .*layers\.1\.safetensors"):
        problem.fit(tmp_path / "f")
    names = {file.name for file in (tmp_path / "f").iterdir()}
    assert names == {"manifest.json", "checkpoint.safetensors", LAYER}
    monkeypatch.undo()
    problem.fit(tmp_path / "f")
    assert (tmp_path / "f" / LAYER).read_bytes() == (finished.path / LAYER).read_bytes()
