"""Building: what is skipped, resumed, rounded and refused; and what a folder that is not whole says."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_dense import TEXTS, model_of, save_optimizer, tokenizer  # noqa: F401
from test_everything import check
from worlds import save_lm

import msif
from msif.errors import MsifError
from msif.index import build
from msif.index.build import Share
from msif.index.rounding import rounding_error
from msif.index.settings import IndexSettings
from msif.index.storage import GradientIndex, decoded, encoded
from msif.index.writing import EMPTY
from msif.indexing import make_index

SMALL = {"blocks": 1, "projection": 3, "dtype": "float32"}


@pytest.fixture(scope="module")
def model():
    return model_of("gpt2")


@pytest.fixture
def stage(model, tokenizer):  # noqa: F811
    def make(texts=TEXTS, **options):
        return msif.Stage(model, data=list(texts), tokenizer=tokenizer, batch_tokens=64, **options)

    return make


def made(stage, path, texts=TEXTS, share=None, **settings):
    own = IndexSettings(**{**SMALL, **settings})
    return make_index(stage(texts), path, own, second_moments="none", share=share)


def by_hash(index):
    rows = index.rows(range(len(index)))
    return {digest: rows[place] for digest, place in index.places.items()}


def equal(first, second):
    one, two = by_hash(first), by_hash(second)
    assert one.keys() == two.keys()
    for digest in one:
        check(one[digest], two[digest], 1e-6)


def test_documents_join_and_known_ones_are_skipped(stage, tmp_path):
    whole = made(stage, tmp_path / "whole")
    part = made(stage, tmp_path / "part", TEXTS[:4])
    assert len(part) == 4
    again = made(stage, tmp_path / "part", [TEXTS[5], *TEXTS, TEXTS[0]])
    assert len(again) == len(TEXTS) and len(again.shards) == 2
    equal(whole, again)
    files = {file.name: file.read_bytes() for file in (tmp_path / "part").iterdir()}
    assert len(made(stage, tmp_path / "part")) == len(TEXTS)
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "part").iterdir()}
    assert again.documents["source"].unique().to_pylist() == ["texts"]


def test_shares_of_many_processes_are_one_index(stage, tmp_path):
    whole = made(stage, tmp_path / "whole")
    assert made(stage, tmp_path / "shared", share=Share(1, 3)) is None
    with pytest.raises(MsifError, match=r"not complete \(part 1 of 3 is missing"):
        GradientIndex.open(tmp_path / "shared")
    assert made(stage, tmp_path / "shared", share=Share(0, 3)) is None
    with pytest.raises(MsifError, match="in 3 shares, not in 2"):
        made(stage, tmp_path / "shared", share=Share(1, 2))
    equal(whole, made(stage, tmp_path / "shared", share=Share(2, 3)))
    assert len(made(stage, tmp_path / "shared", [*TEXTS, "one more"])) == len(TEXTS) + 1


@pytest.mark.parametrize("first", [0, 1])
def test_new_documents_are_there_when_every_share_has_taken_its_own(stage, tmp_path, first):
    """Also where all shares of the documents before them are complete."""
    for number in (0, 1):
        index = made(stage, tmp_path / "shared", TEXTS[:8], share=Share(number, 2))
    assert len(index) == 8
    assert made(stage, tmp_path / "shared", share=Share(first, 2)) is None
    assert made(stage, tmp_path / "shared", share=Share(first, 2)) is None
    assert len(made(stage, tmp_path / "shared", TEXTS[:8], share=Share(first, 2))) < len(TEXTS)
    equal(made(stage, tmp_path / "whole"), made(stage, tmp_path / "shared", share=Share(1 - first, 2)))
    assert len(made(stage, tmp_path / "shared", share=Share(first, 2))) == len(TEXTS)


def test_a_share_alone_finishes_nothing_that_another_number_left(stage, tmp_path):
    for number in (0, 1):
        made(stage, tmp_path / "shared", TEXTS[:8], share=Share(number, 2))
    part = tmp_path / "shared" / "shards.0-of-1.json"
    part.write_text(json.dumps({**EMPTY, "part": 0, "of": 1}))
    assert made(stage, tmp_path / "shared", share=Share(0, 2)) is None
    assert not json.loads(part.read_text())["complete"]
    assert len(made(stage, tmp_path / "shared", share=Share(1, 2))) == len(TEXTS)


def test_what_several_left_one_finishes(stage, tmp_path):
    whole = made(stage, tmp_path / "whole")
    assert made(stage, tmp_path / "left", share=Share(0, 3)) is None
    part = tmp_path / "left" / "shards.0-of-3.json"
    part.write_text(json.dumps({**json.loads(part.read_text()), "complete": False}))
    equal(whole, made(stage, tmp_path / "left"))
    assert made(stage, tmp_path / "left", texts=TEXTS[:2], share=Share(1, 2)) is None  # half of a split settles nothing


def test_an_interrupted_build_keeps_what_it_has(stage, tmp_path, monkeypatch):
    whole = made(stage, tmp_path / "whole")
    taken = []

    class Interrupted(build._Builder):
        def _take(self, batch, features):
            if len(taken) == 2:
                raise KeyboardInterrupt
            taken.append(len(batch))
            super()._take(batch, features)

    with monkeypatch.context() as patch:
        patch.setattr(build, "_Builder", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            made(stage, tmp_path / "index")
    with pytest.raises(MsifError, match="is missing or was interrupted"):
        GradientIndex.open(tmp_path / "index")
    log = []
    monkeypatch.setattr(build.log, "info", lambda *parts: log.append(parts))
    equal(whole, made(stage, tmp_path / "index"))
    assert log[0][1] == len(TEXTS) - sum(taken)


KILLED = """
import sys, os, signal
from msif.index.writing import ShardWriter
write = ShardWriter.write
def killed(self, tensors, documents):
    if len(self.shards) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, tensors, documents)
ShardWriter.write = killed
from msif.index import build
build.SHARD_BYTES = 1
from msif.build_index import main
main(sys.argv[1:])
"""


def test_a_killed_build_goes_on(tmp_path, zygote):
    save_lm(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    flags = ["--model", tmp_path / "model", "--data", tmp_path / "data.jsonl", "--projection", "3", "--quiet"]
    flags += ["--second-moments", "none", "--batch-tokens", "40", "--checkpoint-every", "0"]
    out = ["--output", tmp_path / "index"]
    (tmp_path / "killed.py").write_text(KILLED)
    status, said = zygote.run(tmp_path / "killed.py", *flags, *out)
    assert status == -signal.SIGKILL, said
    (tmp_path / "index" / f".0-of-1.00002.safetensors.{os.getpid()}.part").write_bytes(b"half")
    status, said = zygote.run("msif.build_index", *flags, *out)
    assert status == 0 and f"{len(TEXTS)} documents" in said, said
    assert zygote.run("msif.build_index", *flags, "--output", tmp_path / "whole")[0] == 0
    equal(GradientIndex.open(tmp_path / "whole"), GradientIndex.open(tmp_path / "index"))
    assert not list((tmp_path / "index").glob("*.part"))


def test_a_build_that_fails_at_once_leaves_nothing(tokenizer, tmp_path):  # noqa: F811
    broken = model_of("gpt2")
    with torch.no_grad():
        broken.transformer.h[0].mlp.c_fc.weight.fill_(torch.nan)
    stage = msif.Stage(broken, data=TEXTS, tokenizer=tokenizer)
    with pytest.raises(MsifError, match="NaN"):
        make_index(stage, tmp_path / "a" / "b" / "index", IndexSettings(**SMALL), second_moments="none")
    assert not list(tmp_path.iterdir())
    (tmp_path / "own").mkdir()  # a folder that was there stays
    with pytest.raises(MsifError, match="NaN"):
        make_index(stage, tmp_path / "own" / "index", IndexSettings(**SMALL), second_moments="none")
    assert (tmp_path / "own").is_dir() and not list((tmp_path / "own").iterdir())


class Ended(build._Builder):
    """It ends before its first shard."""

    def _pass(self, todo):
        raise KeyboardInterrupt


@pytest.mark.parametrize("moments", ["none", "estimate"])
@pytest.mark.parametrize("first", [True, False])
def test_a_share_that_ends_at_once_leaves_others_what_they_need(stage, tmp_path, monkeypatch, moments, first):
    """Whether it was the one that began the index or not."""

    def share(number):
        own = IndexSettings(**SMALL)
        return make_index(stage(), tmp_path / "shared", own, second_moments=moments, share=Share(number, 2))

    class AtWork(build._Builder):
        def _pass(self, todo):
            with monkeypatch.context() as patch:
                patch.setattr(build, "_Builder", Ended)
                with pytest.raises(KeyboardInterrupt):
                    share(1)
            super()._pass(todo)

    with monkeypatch.context() as patch:
        patch.setattr(build, "_Builder", Ended)
        if first:
            with pytest.raises(KeyboardInterrupt):
                share(1)
        patch.setattr(build, "_Builder", AtWork)
        assert share(0) is None
    files = {file.name: file.read_bytes() for file in (tmp_path / "shared").iterdir()}
    assert "manifest.json" in files and ("moments.safetensors" in files) == (moments == "estimate")
    whole = make_index(stage(), tmp_path / "whole", IndexSettings(**SMALL), second_moments=moments)
    equal(whole, share(1))


def test_a_build_that_fails_removes_only_what_it_began(stage, tmp_path, monkeypatch):
    """And not what a share began."""
    monkeypatch.setattr(build, "_Builder", Ended)
    for share in (Share(1, 2), None):
        with pytest.raises(KeyboardInterrupt):
            made(stage, tmp_path / "index", share=share)
        assert (tmp_path / "index" / "manifest.json").is_file()


def test_rows_with_nothing_to_predict_are_known_as_such(stage, tmp_path):
    index = made(stage, tmp_path / "index", [*TEXTS, "", "x"])
    assert len(index) == len(TEXTS) and len(index.skipped) == 2


@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", 0), ("bfloat16", 2**-7), ("float16", 2**-10), ("int8", 1 / 127)]
)
def test_storage_rounds_as_its_dtype_says(dtype, error):
    features = torch.randn(20, 12, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 2, 20)[:, None]
    columns = [slice(0, 4), slice(4, 12)]
    stored = encoded(features, columns, dtype)
    found = decoded(stored, columns)
    for block in columns:
        largest = features[:, block].abs().amax(1, keepdim=True)
        assert bool(((found - features)[:, block].abs() <= 0.5 * error * largest + 1e-12).all())
    assert torch.equal(stored["norms"], features.norm(dim=1))
    said = rounding_error(features, stored, columns)
    cosines = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=2)
    after = torch.nn.functional.cosine_similarity(found[:, None], found[None], dim=2)
    assert said["largest"] == pytest.approx(float((cosines - after).abs().fill_diagonal_(0).max()), abs=1e-6)
    assert said["top10"] == 1.0 if dtype == "float32" else 0.5 < said["top10"] <= 1.0


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1e6, 1e15])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_features_of_any_size_are_stored(dtype, size):
    """As far as float32 goes; float16 alone would end at 65504, and begin at 6e-8."""
    features = size * torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    features[1, :4] = 0.0
    columns = [slice(0, 4), slice(4, 12)]
    check(decoded(encoded(features, columns, dtype), columns), features, 2e-2)


def test_float16_of_before_it_had_scales_is_read(stage, tmp_path):
    index, exact = made(stage, tmp_path / "index", dtype="float16"), made(stage, tmp_path / "exact")
    (shard,) = index.shards
    norms = index._tensor(shard, "norms")
    save_file(
        {"gradients": index.rows(range(len(index))).half(), "norms": norms},
        tmp_path / "index" / f"{shard.name}.safetensors",
    )
    old = GradientIndex.open(tmp_path / "index")
    check(old.rows([0, 5]), exact.rows([0, 5]), 1e-2)
    assert len(made(stage, tmp_path / "index", [*TEXTS, "one more"], dtype="float16")) == len(TEXTS) + 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_an_index_says_what_its_rounding_does(stage, tmp_path, dtype):
    index, exact = made(stage, tmp_path / "index", dtype=dtype), made(stage, tmp_path / "exact")
    assert exact.rounding is None and 0 < index.rounding["largest"] < 0.05
    assert index.rounding["documents"] >= 3
    check(index.rows([0, 5]), exact.rows([0, 5]), 1e-2)


def test_another_models_index_other_settings_and_damage_are_refused(stage, tokenizer, tmp_path):  # noqa: F811
    made(stage, tmp_path / "index")
    with pytest.raises(MsifError, match=r"settings.projection is 3 there and 4 now"):
        made(stage, tmp_path / "index", projection=4)
    with pytest.raises(MsifError, match=r"settings.seed is 0 there and 1 now"):
        made(stage, tmp_path / "index", seed=1)
    other = model_of("gpt2")
    with torch.no_grad():
        other.transformer.h[0].mlp.c_fc.weight.add_(0.1)
    foreign = msif.Stage(other, data=TEXTS, tokenizer=tokenizer)
    with pytest.raises(MsifError, match=r"index of other settings \(model.weights is"):
        make_index(foreign, tmp_path / "index", IndexSettings(**SMALL), second_moments="none")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "notes.txt").write_text("mine")
    with pytest.raises(MsifError, match=r"there is no index at .*odd"):
        made(stage, tmp_path / "odd")
    with pytest.raises(MsifError, match="there is no index at"):
        GradientIndex.open(tmp_path / "nowhere")
    assert (tmp_path / "odd" / "notes.txt").read_text() == "mine"


def test_documents_join_only_under_the_second_moments_asked_for(tokenizer, tmp_path):  # noqa: F811
    model = model_of("gpt2")
    adam, adafactor = (str(save_optimizer(model, tmp_path / f"{kind}-state", kind)) for kind in ("adam", "adafactor"))

    def built(kind, name, texts=TEXTS[:4]):
        stage = msif.Stage(model, data=list(texts), tokenizer=tokenizer)
        return make_index(stage, tmp_path / name, IndexSettings(**SMALL), second_moments=kind)

    kinds = {"none": "none", "estimate": "estimate", "adam": adam, "adafactor": adafactor}
    for name, kind in kinds.items():
        assert len(built(kind, name, TEXTS[:2])) == 2
        files = {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for other in [*(one for one in kinds.values() if one != kind), str(tmp_path / "nowhere"), "optimizer"]:
            with pytest.raises(MsifError, match=r"second.moments|no optimizer\.pt"):
                built(other, name)
        assert files == {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        assert len(built(kind, name)) == 4
    with pytest.raises(
        MsifError, match=r"built with second moments from 'estimate', and --second-moments .*adam-state are"
    ):
        built(adam, "estimate")
    with pytest.raises(MsifError, match=r"built with second moments from 'none', and --second-moments auto are others"):
        built("auto", "none")
    moments = tmp_path / "copy.safetensors"
    moments.write_bytes((tmp_path / "adam" / "moments.safetensors").read_bytes())
    assert len(built(str(moments), "adam", TEXTS[:5])) == 5  # the same V from elsewhere
    for name in ("estimate", "adafactor"):
        assert len(built("auto", name, TEXTS[:5])) == 5


def test_a_damaged_index_is_named(stage, tmp_path):
    index = made(stage, tmp_path / "index")
    name = index.shards[0].name
    shard, table = (tmp_path / "index" / f"{name}.{kind}" for kind in ("safetensors", "parquet"))
    whole, rows = shard.read_bytes(), table.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MsifError, match=r"safetensors cannot be read .*build it again"):
        GradientIndex.open(tmp_path / "index")
    tensors = load_file_of(whole, tmp_path)
    save_file({key: value[:3].contiguous() for key, value in tensors.items()}, shard)
    with pytest.raises(MsifError, match=rf"holds 3 × \d+ numbers where its index says {len(TEXTS)} ×"):
        GradientIndex.open(tmp_path / "index")
    shard.unlink()
    with pytest.raises(MsifError, match="cannot be read"):
        GradientIndex.open(tmp_path / "index")
    shard.write_bytes(whole)
    table.write_bytes(rows[:50])
    with pytest.raises(MsifError, match=r"table of the index .* cannot be read"):
        _ = GradientIndex.open(tmp_path / "index").places
    table.unlink()
    with pytest.raises(MsifError, match="parquet is not there"):
        GradientIndex.open(tmp_path / "index")
    (tmp_path / "index" / "manifest.json").write_text("{")
    with pytest.raises(MsifError, match=r"manifest.json is damaged"):
        GradientIndex.open(tmp_path / "index")


def load_file_of(content, folder):
    (folder / "copy.safetensors").write_bytes(content)
    return load_file(folder / "copy.safetensors")


def test_a_full_disk_is_one_sentence_and_loses_nothing(stage, tmp_path, monkeypatch):
    made(stage, tmp_path / "index", TEXTS[:5])
    before = by_hash(GradientIndex.open(tmp_path / "index"))
    assert len(before) == 5

    def full(tensors, file, metadata=None):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("msif.curvature.store.save_file", full)
        with pytest.raises(MsifError, match="the disk is full while writing"):
            made(stage, tmp_path / "index")
    after = by_hash(made(stage, tmp_path / "index"))
    assert len(after) == len(TEXTS)
    for digest, features in before.items():
        assert torch.equal(after[digest], features)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"blocks": 0}, "--blocks is 0"),
        ({"projection": 0}, "--projection is 0"),
        ({"dtype": "int4"}, "--dtype is 'int4'"),
        ({"weighting": "all"}, "--weighting is 'all'"),
        ({"measurement": "bleu"}, "--measurement is 'bleu'"),
        ({"basis": "x"}, "--basis is 'x'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_are_none(settings, said):
    with pytest.raises(MsifError, match=said):
        IndexSettings(**settings)
    with pytest.raises(MsifError, match="--shard 4/3 is none"):
        Share(3, 3)


def test_chunks_do_not_matter(stage, tmp_path, monkeypatch):
    index = made(stage, tmp_path / "index")
    whole = index.rows(range(len(index)))
    monkeypatch.setattr("msif.index.storage.CHUNK_BYTES", 1)
    assert torch.equal(index.rows(range(len(index))), whole)
    assert torch.equal(index.rows([3, 0, 3]), whole[[3, 0, 3]])
    own = [places for places, _ in index.chunks(np.array([7, 2]))]
    assert np.concatenate(own).tolist() == [2, 7]
