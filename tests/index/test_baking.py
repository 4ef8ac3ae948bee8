"""Baked vectors: equal to what they stand for, kept while they are, and never used when they are stale."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_correction import COLUMNS, inverse, mean_square, random_index  # noqa: F401
from test_dense import (  # noqa: F401
    QUESTIONS,
    SMALL,
    TEXTS,
    batches_alone,
    by_row,
    dense_features,
    dense_roots,
    model_of,
    stage,
    tokenizer,
)
from test_everything import check
from test_multi_stage import index_of, pair  # noqa: F401

from msif.attribution.gradients import Side
from msif.data.documents import collate
from msif.errors import MsifError
from msif.index import baking
from msif.index.baking import bake, baked_vectors
from msif.index.correction import RSettings, correction_of
from msif.index.pools import indexed_modules
from msif.index.scorer import IndexScorer
from msif.index.settings import IndexSettings
from msif.index.storage import GradientIndex, encoded
from msif.index.writing import ShardWriter
from msif.indexing import make_index, opened_plan
from msif.models.objectives import CausalLM


def append(index, features, dtype="float32"):
    """The same index with more documents."""
    writer, count = ShardWriter(index.path), len(features)
    named = {"hash": [bytes([n + 1]) * 16 for n in range(count)], "row": list(range(count)), "tokens": [1] * count}
    named |= {"id": ["n"] * count, "source": ["x"] * count}
    writer.write(encoded(features.float(), COLUMNS, dtype), named)
    writer.save(complete=True)
    return GradientIndex.open(index.path)


def used(index, r):
    settings = RSettings.parse(r)
    return baked_vectors(index, settings, correction_of(index, settings, torch.ones(1, 18, dtype=torch.float64)))


def cosines(features, r):
    """Of all documents with all, by R⁻¹ written out."""
    R = torch.eye(18, dtype=torch.float64) if r == "none" else inverse(mean_square(features))
    products = features @ R @ features.T
    norms = products.diagonal().sqrt()
    return products / norms / norms[:, None]


@pytest.mark.parametrize("documents", [5, 60])  # R is of few rows, or whole
@pytest.mark.parametrize("r", ["none", "train"])
def test_they_are_unit_and_corrected(random_index, documents, r):  # noqa: F811
    index, features = random_index(documents)
    baked = bake(index, r)
    found = baked.rows(range(documents)).double()
    check(found.norm(dim=1), torch.ones(documents), 1e-6)
    check(found @ found.T, cosines(features, r), 1e-5)
    queries = torch.randn(3, 18, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    W = correction_of(index, RSettings(r), queries)
    expected = F.normalize(W.apply(queries), dim=1) @ F.normalize(W.apply(features), dim=1).T
    check(F.normalize(W.apply(queries), dim=1) @ found.T, expected, 1e-5)
    assert used(GradientIndex.open(index.path), r) is not None


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 2**-8), ("float16", 2**-11), ("int8", 1 / 127)])
def test_they_are_as_exact_as_their_dtype(random_index, dtype, error):  # noqa: F811
    index, _ = random_index(60, dtype=dtype)
    stored = index.rows(range(60)).double()  # what was rounded before it was baked
    found = bake(index).rows(range(60)).double()
    assert (found @ found.T - cosines(stored, "train")).abs().max() < 2 * error
    with index._opened(index.shards[0]) as raw, bake(index)._opened(index.shards[0]) as own:
        names = set(raw.keys())
        assert names == set(own.keys()) and all(raw.get_tensor(n).dtype == own.get_tensor(n).dtype for n in names)


def times(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_an_interrupted_baking_goes_on(random_index, monkeypatch):  # noqa: F811
    index, features = random_index(60)
    save, written = baking.save_tensors, []

    def interrupted(path, tensors):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        save(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(baking, "save_tensors", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bake(index)
    assert used(index, "train") is None  # not of all documents
    folder = index.path / "baked-train"
    before = times(folder)
    found = bake(index).rows(range(60)).double()
    assert all(times(folder)[name] == before[name] for name in written) and len(times(folder)) == len(index.shards) + 1
    check(found @ found.T, cosines(features, "train"), 1e-5)
    after = times(folder)
    bake(GradientIndex.open(index.path))
    assert times(folder) == after  # nothing was left to do


def test_documents_that_join_make_another_r(random_index, monkeypatch):  # noqa: F811
    index, features = random_index(55)
    more = torch.zeros(1, 18, dtype=torch.float64)
    more[0, 3] = features.square().sum(1).mean().sqrt()  # so that R is another, and its trace the same
    for r in ("none", "train"):
        bake(index, r)
    before = {r: times(index.path / f"baked-{r}") for r in ("none", "train")}
    index, features = append(index, more), torch.cat([features, more])
    assert used(index, "none") is None and used(index, "train") is None  # the one lacks a document, the other is stale
    for r in ("none", "train"):
        found = bake(index, r).rows(range(56)).double()
        check(found @ found.T, cosines(features, r), 1e-5)
        assert used(index, r) is not None
        same = [name for name, time in before[r].items() if times(index.path / f"baked-{r}")[name] == time]
        assert len(same) == (4 if r == "none" else 0)
    # of as many documents, but by an R that was taken from fewer of them
    (index.path / "R.safetensors").unlink()
    monkeypatch.setattr("msif.index.correction.DOCUMENTS_PER_FEATURE", 2)
    assert used(index, "train") is None
    (index.path / "baked-none" / "baked.json").write_text("{")
    assert used(index, "none") is None


def test_w_is_that_of_later_queries(random_index):  # noqa: F811
    """Taken from R as it is kept, and not from the sums of more digits that it was made of."""
    index, _ = random_index(60)
    first = bake(index).rows(range(60))
    assert (index.path / "R.safetensors").is_file()
    shutil.rmtree(index.path / "baked-train")
    assert torch.equal(bake(index).rows(range(60)), first)


def test_stale_ones_that_are_baked_again_are_not_used_before_they_are_whole(random_index, monkeypatch):  # noqa: F811
    index, _ = random_index(60)
    bake(index)
    index = append(index, torch.full((1, 18), 9.0))

    def full(path, tensors):
        raise MsifError("the disk is full")

    monkeypatch.setattr(baking, "save_tensors", full)
    with pytest.raises(MsifError, match="full"):
        bake(index)
    assert json.loads((index.path / "baked-train" / "baked.json").read_text())["shards"] == {}
    assert used(index, "train") is None


def test_only_what_was_asked_for_takes_them(random_index):  # noqa: F811
    index, _ = random_index(60)
    assert used(index, "train") is None
    bake(index)
    assert used(index, "train") is not None
    assert used(index, "none") is used(index, "mixed:0") is used(index, "mixed") is None
    single = RSettings("train", dtype=torch.float32)
    assert baked_vectors(index, single, correction_of(index, single, torch.ones(1, 18))) is None
    for r in ("mixed", "mixed:0.5", "all"):
        with pytest.raises(MsifError, match="cannot be baked"):
            bake(index, r)


def test_a_damaged_shard_is_said_and_baked_again(random_index):  # noqa: F811
    index, features = random_index(60)
    bake(index)
    file = index.path / "baked-train" / f"{index.shards[1].name}.safetensors"
    for damage in (lambda: file.write_bytes(b"x"), file.unlink):
        damage()
        with pytest.raises(MsifError, match="cannot be read"):
            used(index, "train")
        found = bake(index).rows(range(60)).double()
        check(found @ found.T, cosines(features, "train"), 1e-5)


def test_an_index_without_documents_is_refused(random_index):  # noqa: F811
    index, _ = random_index(0)
    with pytest.raises(MsifError, match="no document to bake"):
        bake(index, "none")


def test_scores_are_the_dense_ones(stage, tmp_path):  # noqa: F811
    """As without baking: against explicit float64 gradients, by scores, search and parts."""
    model = model_of("gpt2")
    one = stage(model)
    index = make_index(one, tmp_path / "index", IndexSettings(**SMALL), second_moments="none")
    side = Side(model, indexed_modules(model, "everything", tied=False), CausalLM())
    batches = batches_alone(one)
    phi = by_row(batches, dense_features(side, index, batches, None))
    asked = dense_features(side, index, [collate([q]) for q in QUESTIONS], None)
    for r in ("none", "train"):
        bake(index, r)
        roots, _ = dense_roots(r, phi, asked, index.columns)
        expected = F.normalize(asked @ roots, dim=1) @ F.normalize(phi @ roots, dim=1).T
        scorer = IndexScorer(opened_plan(index, one), index, side, r=r)
        vectors = scorer.query_vectors([collate(QUESTIONS)])
        assert vectors.baked is not None
        check(scorer.score_vectors(vectors, one.batches).values, expected, 2e-4)
        rows, places = scorer.places_of(one.batches)
        row_of = dict(zip(places.tolist(), rows.tolist(), strict=True))
        for lowest in (False, True):
            found = scorer.search(vectors, 4, places=np.sort(places[::2]), lowest=lowest)
            half = expected.clone()
            half[:, rows[1::2]] = float("inf") if lowest else -float("inf")
            order = half.argsort(1, descending=not lowest)[:, :4]
            assert [[row_of[place] for place in own] for own in found.places.tolist()] == order.tolist()
            check(found.scores, half.gather(1, order), 2e-4)
        for part in scorer.explain(vectors, batches):
            check(part.scores.float(), expected[:, part.index], 5e-3)
            check(part.tokens.sum(1), part.scores)
        plain = IndexScorer(opened_plan(index, one), index, side, r=r, normalize="none")
        vectors = plain.query_vectors([collate(QUESTIONS)])
        assert vectors.baked is None
        check(plain.score_vectors(vectors, one.batches).values, asked @ roots @ roots.T @ phi.T, 2e-4)


def test_of_an_index_with_factors_they_are_for_unit_norm(pair, tmp_path):  # noqa: F811
    first, _ = pair
    index = index_of(first, tmp_path / "index", projection=4)
    scores = {}
    for baked in (False, True):
        if baked:
            bake(index, "none")
        for normalize in (None, "unit"):
            plan = opened_plan(index, first, first.factors)
            scorer = IndexScorer(plan, index, first.side, normalize=normalize)
            vectors = scorer.query_vectors([collate(QUESTIONS)])
            assert (vectors.baked is not None) == (baked and normalize == "unit")
            scores[baked, normalize] = scorer.score_vectors(vectors, first.batches).values
    for normalize in (None, "unit"):
        check(scores[True, normalize], scores[False, normalize], 1e-5)
