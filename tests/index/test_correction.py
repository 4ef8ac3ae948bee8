"""R, its mixture, and search, each against a few lines of dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_everything import check

from msif.errors import MsifError
from msif.index import correction, roots
from msif.index.correction import (
    Correction,
    RSettings,
    corrected_norms,
    correction_of,
    mixed_correction,
    moment_of,
    moment_of_index,
)
from msif.index.search import scores_at, search
from msif.index.settings import IndexSettings
from msif.index.storage import GradientIndex, encoded
from msif.index.writing import ShardWriter, open_or_create

COLUMNS = [slice(0, 9), slice(9, 18)]


@pytest.fixture
def random_index(tmp_path):
    def make(documents=60, name="index", shard=17, dtype="float32"):
        settings = IndexSettings(projection=3, dtype=dtype)
        run = {"settings": settings.to_json(), "moments": None, "curvature": None}
        open_or_create(tmp_path / name, run, {"columns": [[0, 9], [9, 18]], "blocks": ["a", "b"], "provenance": {}})
        writer = ShardWriter(tmp_path / name)
        features = torch.randn(documents, 18, generator=torch.Generator().manual_seed(documents))
        features = features * torch.linspace(0.1, 3, 18)
        for start in range(0, documents, shard):
            rows = range(start, min(start + shard, documents))
            named = {"hash": [row.to_bytes(16, "big") for row in rows], "row": list(rows), "id": [str(r) for r in rows]}
            named |= {"source": ["x"] * len(rows), "tokens": [1] * len(rows)}
            writer.write(encoded(features[list(rows)], COLUMNS, dtype), named)
        writer.save(complete=True)
        return GradientIndex.open(tmp_path / name), features.double()

    return make


def mean_square(features):
    mask = torch.block_diag(torch.ones(9, 9), torch.ones(9, 9))
    return features.T @ features / len(features) * mask


def whole(moment):
    return torch.block_diag(moment.block(0), moment.block(1))


def inverse(R):
    floor = torch.cat([R[one, one].diagonal().mean().expand(9) for one in COLUMNS])
    return torch.linalg.inv(R + roots.FLOOR * torch.diag(floor))


@pytest.mark.parametrize("documents", [1, 5, 60])
@pytest.mark.parametrize("r", ["train", "mixed", "mixed:0.3", "mixed:0"])
def test_products_are_those_of_the_inverse(random_index, documents, r):
    """With fewer documents than features, too, where R is singular but for its floor."""
    index, features = random_index(documents)
    queries = torch.randn(documents // 2 + 1, 18, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = correction_of(index, RSettings.parse(r), queries)
    R = found.mix * mean_square(queries) + (1 - found.mix) * mean_square(features)
    check(found.transposed(found.apply(queries)), queries @ inverse(R), 1e-6)
    check(found.apply(queries) @ found.apply(features).T, queries @ inverse(R) @ features.T, 1e-6)
    norms = torch.einsum("nd,de,ne->n", features, inverse(R), features).sqrt()
    check(corrected_norms(index, found), norms, 1e-5)
    check(corrected_norms(index, found, np.array([documents - 1, 0])), norms[[documents - 1, 0]], 1e-5)
    assert (found.mix == 0) == (r in ("train", "mixed:0")) and (r != "mixed:0.3" or found.mix == 0.3)


def test_mixed_terms_meet_where_they_are_said_to(random_index, monkeypatch):
    index, features = random_index(60)
    monkeypatch.setattr(correction, "MEETING", 4 / 18)
    queries = torch.randn(30, 18, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mix = correction_of(index, RSettings("mixed"), queries).mix
    first, second = (torch.linalg.eigvalsh(mean_square(one)).flip(0) for one in (queries, features))
    assert mix * float(first[3]) == pytest.approx((1 - mix) * float(second[3]), rel=1e-5)
    few = moment_of(queries[:1], COLUMNS, torch.float64)
    assert len(few.values) == 2  # one of each block
    mix = correction_of(index, RSettings("mixed"), queries[:1]).mix
    assert mix * float(few.values[1]) == pytest.approx((1 - mix) * float(second[1]), rel=1e-5)


def test_r_is_kept_until_documents_join(random_index, monkeypatch):
    index, features = random_index(60)
    first = moment_of_index(index)
    monkeypatch.setattr(GradientIndex, "chunks", None)  # it is not read again
    again = moment_of_index(GradientIndex.open(index.path))
    assert torch.equal(again.values, first.values)
    for number in range(2):
        assert torch.equal(again.block(number), first.block(number))
    monkeypatch.undo()
    (index.path / "R.safetensors").write_bytes(b"damaged")
    check(whole(moment_of_index(index)), mean_square(features), 1e-6)
    writer = ShardWriter(index.path)
    writer.write(
        encoded(torch.full((1, 18), 100.0), COLUMNS, "float32"),
        {"hash": [b"x" * 16], "row": [60], "id": ["n"], "source": ["x"], "tokens": [1]},
    )
    writer.save(complete=True)
    more = torch.cat([features, torch.full((1, 18), 100.0, dtype=torch.float64)])
    check(whole(moment_of_index(GradientIndex.open(index.path))), mean_square(more), 1e-6)


@pytest.mark.parametrize("documents", [5, 60])  # R is of few rows, or whole
@pytest.mark.parametrize("r", ["mixed", "mixed:0.5", "train"])
def test_the_same_question_has_the_same_answer(random_index, documents, r):
    """Also the first, before R is kept."""
    index, _ = random_index(documents)
    queries = torch.randn(3, 18, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first, again = (correction_of(GradientIndex.open(index.path), RSettings.parse(r), queries) for _ in range(2))
    assert first.mix == again.mix and torch.equal(first.apply(queries), again.apply(queries))


@pytest.mark.parametrize("documents", [5, 60])
@pytest.mark.parametrize("r", ["mixed", "mixed:0.5", "train"])
def test_a_query_of_zero_scores_zero(random_index, documents, r):
    """Alone, where R_eval is zero, and among others."""
    index, features = random_index(documents)
    for queries in (torch.zeros(1, 18), torch.zeros(20, 18), torch.cat([torch.zeros(1, 18), torch.ones(1, 18)])):
        found = correction_of(index, RSettings.parse(r), queries.double())
        scores = found.apply(queries.double()) @ found.apply(features).T
        assert not scores[0].any() and bool(scores.isfinite().all()) and bool(found.apply(features).all())
        assert np.isfinite(corrected_norms(index, found)).all()
    assert correction_of(index, RSettings("mixed"), torch.zeros(1, 18)).mix == 0.0


@pytest.mark.parametrize("documents", [5, 60])
@pytest.mark.parametrize("queries", [torch.zeros(1, 18), torch.ones(2, 18)])
def test_r_of_nothing_is_refused(documents, queries):
    trained = moment_of(torch.zeros(documents, 18), COLUMNS, torch.float64)
    for r in ("mixed", "train"):
        with pytest.raises(MsifError, match="give --r none"):
            mixed_correction(trained, queries, COLUMNS, RSettings(r))


def test_r_that_is_not_finite_is_not_kept(random_index):
    index, _ = random_index(60)
    writer = ShardWriter(index.path)
    named = {"hash": [b"x" * 16], "row": [60], "id": ["n"], "source": ["x"], "tokens": [1]}
    writer.write(encoded(torch.full((1, 18), torch.inf), COLUMNS, "float32"), named)
    writer.save(complete=True)
    with pytest.raises(MsifError, match="R is not finite"):
        moment_of_index(GradientIndex.open(index.path))
    assert not (index.path / "R.safetensors").exists()


def test_many_documents_are_sampled_evenly(random_index, monkeypatch):
    index, features = random_index(60)
    monkeypatch.setattr(correction, "DOCUMENTS_PER_FEATURE", 2)
    check(whole(moment_of_index(index)), mean_square(features[[n * 60 // 18 for n in range(18)]]), 1e-6)


@pytest.mark.parametrize("lowest", [False, True])
@pytest.mark.parametrize("chunk", [1, 400, 2**20])
def test_search_is_a_sort(random_index, monkeypatch, chunk, lowest):
    monkeypatch.setattr("msif.index.storage.CHUNK_BYTES", chunk)
    index, features = random_index(60)
    queries = torch.randn(5, 18, generator=torch.Generator().manual_seed(1))
    scores = queries.double() @ features.T
    for norms in (None, index.norms):
        own = scores if norms is None else scores / torch.from_numpy(norms)
        values, order = own.sort(dim=1, descending=not lowest)
        found = search(index, queries, 7, norms=norms, lowest=lowest)
        assert found.places.tolist() == order[:, :7].tolist()
        check(found.scores, values[:, :7], 1e-5)
        assert search(index, queries, 1000, norms=norms).places.shape == (5, 60)
    some = np.array([3, 9, 20, 33, 59])
    found = search(index, queries, 2, places=some, norms=index.norms[some], lowest=lowest)
    cosines = F.normalize(features, dim=1)[some] @ queries.double().T
    expected = cosines.T.argsort(dim=1, descending=not lowest)[:, :2]
    assert found.places.tolist() == some[expected].tolist()
    check(scores_at(index, queries, np.array([33, 3, 33])), scores[:, [33, 3, 33]], 1e-5)
    cosine = scores_at(index, queries, np.array([20, 3]), index.norms[[20, 3]])
    check(cosine, (scores / features.norm(dim=1))[:, [20, 3]], 1e-5)


def test_a_ten_thousandth_of_the_mean_is_added():
    """Of R = diag(2, 0, 0, 0) its mean eigenvalue is 1/2, so that the others are 5e-5."""
    rows = torch.tensor([[2.0**0.5, 0, 0, 0]], dtype=torch.float64)
    expected = torch.tensor([2.00005, 5e-5, 5e-5, 5e-5], dtype=torch.float64).rsqrt()
    for root in (roots.FewRoot(rows), roots.CholeskyRoot(rows.T @ rows)):
        check(root.apply(torch.eye(4, dtype=torch.float64)).diagonal(), expected, 1e-9)


def test_what_cannot_be(random_index):
    index, _ = random_index(5)
    with pytest.raises(MsifError, match="0 documents are asked for"):
        search(index, torch.ones(1, 18), 0)
    with pytest.raises(MsifError, match="4 features where the index has 18"):
        search(index, torch.ones(1, 4), 1)
    for text in ("mixed:1", "mixed:-0.1", "mixed:x", "train:0.5", "mixed:nan"):
        with pytest.raises(MsifError, match="LAMBDA"):
            RSettings.parse(text)
    for root in (roots.CholeskyRoot, roots.FewRoot):
        for value in (0.0, torch.nan, torch.inf):
            with pytest.raises(MsifError, match="zero or not finite"):
                root(torch.full((3, 3), value))
    for value in (torch.nan, torch.inf):
        for rows in (1, 30):  # fewer than features, and more
            with pytest.raises(MsifError, match="R is not finite"):
                moment_of(torch.full((rows, 18), value), COLUMNS, torch.float64)
    assert Correction(COLUMNS).apply(torch.ones(1, 18)).sum() == 18
