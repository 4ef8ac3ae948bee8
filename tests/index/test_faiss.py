"""faiss over baked vectors: finds what exact search finds, says how much, and refuses what it was not made of."""

from __future__ import annotations

import builtins
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_baking import append
from test_correction import random_index  # noqa: F401
from test_dense import QUESTIONS, SMALL, model_of, stage, tokenizer  # noqa: F401
from test_everything import check

from msif.data.documents import collate
from msif.errors import MsifError
from msif.index import approximate
from msif.index.approximate import check_factory, make_approximate, open_approximate, usual_factory
from msif.index.baking import bake
from msif.index.correction import RSettings
from msif.index.scorer import IndexScorer
from msif.index.search import search
from msif.index.settings import IndexSettings
from msif.indexing import make_index, opened_plan

faiss = pytest.importorskip("faiss")

TRAIN = RSettings("train")


def queries(count=6):
    return F.normalize(torch.randn(count, 18, generator=torch.Generator().manual_seed(1)), dim=1)


def opened(index, r=TRAIN, normalize="unit"):
    return open_approximate(index, r, normalize)


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW32,Flat", "RR18,IVF4,Flat"])
@pytest.mark.parametrize("lowest", [False, True])
def test_it_finds_what_exact_search_finds(random_index, factory, lowest):  # noqa: F811
    index, _ = random_index(200)
    baked = bake(index)
    made = make_approximate(baked, factory)
    assert made.report["recall"]["10"] >= approximate.RECALL and made.report["queries"] == 100
    if made.report["parameter"]:  # all lists, or neighbours, and then it is exact
        faiss.ParameterSpace().set_index_parameter(made.index, made.report["parameter"], 200)
    ours = made.search(queries(), 5, lowest=lowest)
    exact = search(baked, queries(), 5, lowest=lowest)
    check(ours.scores, exact.scores, 1e-5)
    assert ours.places.tolist() == exact.places.tolist()
    some = np.array([3, 50, 51, 90, 120, 199])
    ours = made.search(queries(), 4, places=some, lowest=lowest)
    exact = search(baked, queries(), 4, places=some, lowest=lowest)
    assert ours.places.tolist() == exact.places.tolist()  # also where a graph would lead past them
    check(ours.scores, exact.scores, 1e-5)
    assert made.search(queries(), 500, places=np.arange(200)).places.shape == (6, 200)
    if made.report["parameter"] == "nprobe":  # one list has fewer than are asked for
        faiss.ParameterSpace().set_index_parameter(made.index, "nprobe", 1)
        exact = search(baked, queries(), 150, lowest=lowest)
        assert made.search(queries(), 150, lowest=lowest).places.tolist() == exact.places.tolist()


def test_products_and_not_distances_are_searched(random_index, monkeypatch):  # noqa: F811
    """Of vectors that are rounded to unit norm no more than nearly, and of queries of any length."""
    index, _ = random_index(200)
    baked = bake(index)
    long = baked.rows(range(200)) * torch.linspace(0.2, 5, 200)[:, None]
    monkeypatch.setattr(type(baked), "chunks", lambda self, places=None: iter([(np.arange(200), long)]))
    made = make_approximate(baked, "Flat")
    products = queries() @ long.T
    found = made.search(queries(), 5)
    assert found.places.tolist() == products.argsort(1, descending=True)[:, :5].tolist()
    check(found.scores, products.sort(1, descending=True).values[:, :5], 1e-5)


def test_what_it_finds_is_measured_and_kept(random_index, monkeypatch):  # noqa: F811
    index, _ = random_index(300)
    baked = bake(index)
    made = make_approximate(baked, "IVF16,SQ8")
    report = json.loads((baked.path / "faiss.json").read_text())
    assert faiss.extract_index_ivf(opened(index).index).nprobe == report["value"] > 1
    assert report == made.report and report["documents"] == 300
    assert report["factory"] == "IVF16,SQ8" and report["parameter"] == "nprobe"
    assert 0.95 <= report["recall"]["10"] <= 1 and f"nprobe {report['value']} finds" in str(made)
    # recall, anew and otherwise: single documents as queries, themselves left out
    rows = baked.rows(range(0, 300, 3))
    ours, exact = made.search(rows, 11).places, search(baked, rows, 11).places
    hits = [len(set(a) & set(b)) - 1 for a, b in zip(ours.tolist(), exact.tolist(), strict=True)]
    assert np.mean(hits) / 10 == pytest.approx(report["recall"]["10"], abs=0.08)
    # fewer lists find less, and it says so
    monkeypatch.setattr(approximate, "RECALL", 0.1)
    poor = make_approximate(baked, "IVF30,SQ8").report
    assert poor["value"] == 1 and poor["recall"]["100"] < poor["recall"]["10"] < 0.95
    again = opened(index)
    assert again.report == poor and faiss.extract_index_ivf(again.index).nprobe == 1


def test_it_is_the_same_each_time(random_index):  # noqa: F811
    index, _ = random_index(300)
    baked, files = bake(index), []
    for _ in range(2):
        made = make_approximate(baked, "IVF8,SQ8")
        files.append((baked.path / "faiss.index").read_bytes())
        (baked.path / "faiss.json").unlink()
    assert files[0] == files[1] and made.index.metric_type == faiss.METRIC_INNER_PRODUCT


def test_what_is_there_is_kept_until_vectors_change(random_index, monkeypatch):  # noqa: F811
    index, _ = random_index(60)
    baked = bake(index)
    make_approximate(baked, "Flat")
    before = (baked.path / "faiss.index").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(approximate, "_tuned", None)
        make_approximate(bake(index), "Flat")
    assert (baked.path / "faiss.index").stat().st_mtime_ns == before
    report = make_approximate(baked, "HNSW8,Flat").report
    graph = faiss.downcast_index(opened(index).index).hnsw
    assert (report["parameter"], report["value"]) == ("efSearch", graph.efSearch)
    bake(index, "none")
    make_approximate(bake(index, "none"))
    index = append(index, torch.full((1, 18), 9.0))
    for r in ("none", "train"):
        with pytest.raises(MsifError, match=f"of other documents or another R .* --bake {r} --faiss again"):
            opened(index, RSettings(r))
        baked = bake(index, r)
        with pytest.raises(MsifError, match="of other documents or another R"):
            opened(index, RSettings(r))  # its vectors are new
        assert make_approximate(baked).index.ntotal == 61
        assert opened(index, RSettings(r)).search(queries(), 3).places.shape == (6, 3)
    # of as many documents, by an R that is taken from fewer of them
    (index.path / "R.safetensors").unlink()
    monkeypatch.setattr("msif.index.correction.DOCUMENTS_PER_FEATURE", 2)
    bake(index)
    with pytest.raises(MsifError, match="of other documents or another R"):
        opened(index)


def test_what_cannot_be_is_said(random_index, monkeypatch):  # noqa: F811
    index, _ = random_index(60)
    with pytest.raises(MsifError, match=r"nothing of faiss in .*--bake train --faiss"):
        opened(index)
    baked = bake(index)
    for r, normalize in (("mixed", "unit"), ("mixed:0", "unit"), ("train", "none")):
        with pytest.raises(MsifError, match="give --r none or --r train, with --normalize unit"):
            opened(index, RSettings.parse(r), normalize)
    with pytest.raises(MsifError, match="cannot read 'IFV8'"):
        check_factory("IFV8")
    check_factory("OPQ8,IVF64,PQ8")
    with pytest.raises(MsifError, match=r"faiss cannot make 'IVF100,Flat' of 60 vectors of 18 \(.*clusters"):
        make_approximate(baked, "IVF100,Flat")
    with pytest.raises(MsifError, match="cannot make 'PQ7'"):
        make_approximate(baked, "PQ7")
    assert not (baked.path / "faiss.json").exists()
    made = make_approximate(baked)
    with pytest.raises(MsifError, match="0 documents are asked for"):
        made.search(queries(), 0)
    with pytest.raises(MsifError, match="4 features where the index has 18"):
        made.search(torch.ones(1, 4), 1)
    (baked.path / "faiss.index").write_bytes(b"damaged")
    with pytest.raises(MsifError, match="cannot be read: remove it"):
        opened(index)
    plain = builtins.__import__

    def without(name, *rest, **options):
        if name == "faiss":
            raise ImportError(name)
        return plain(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MsifError, match=r"pip install 'msif\[faiss\]'"):
        opened(index)


def test_the_factory_goes_by_the_number_of_documents():
    assert usual_factory(9_999, 65_536) == "Flat"
    assert usual_factory(10_000, 256) == "IVF100,SQ8"
    assert usual_factory(1_000_000, 4096) == "IVF1000,SQ8"
    assert usual_factory(1_000_000, 65_536) == "IVF105,SQ8"  # a gigabyte of them is 4,096


def test_a_scorer_searches_by_it(stage, tmp_path):  # noqa: F811
    one = stage(model_of("gpt2"))
    index = make_index(one, tmp_path / "index", IndexSettings(**SMALL), second_moments="none")
    plan = opened_plan(index, one)
    with pytest.raises(MsifError, match="search is 'nearest': choose one of exact, faiss"):
        IndexScorer(plan, index, plan.side, r="train", search="nearest")
    with pytest.raises(MsifError, match="nothing of faiss"):
        IndexScorer(plan, index, plan.side, r="train", search="faiss")
    make_approximate(bake(index))
    with pytest.raises(MsifError, match="mixed R depends on the queries"):
        IndexScorer(plan, index, plan.side, search="faiss")
    exact, ours = (IndexScorer(plan, index, plan.side, r="train", search=how) for how in ("exact", "faiss"))
    found = [scorer.search(scorer.query_vectors([collate(QUESTIONS)]), 5) for scorer in (exact, ours)]
    assert found[0].places.tolist() == found[1].places.tolist()
    check(found[1].scores, found[0].scores, 1e-5)
    (index.path / "baked-train" / f"{index.shards[0].name}.safetensors").rename(tmp_path / "away")
    with pytest.raises(MsifError, match="cannot be read"):
        ours.query_vectors([collate(QUESTIONS)])
