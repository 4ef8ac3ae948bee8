"""What search adds to influence."""

import numpy as np
import pytest

from msif.attribution.prior import Prior, parse_prior, with_prior
from msif.attribution.results import Ranking
from msif.data.queries import Query
from msif.errors import MsifError
from msif.options import Options


def ranking(scores, rows=None):
    return Ranking(Query("q", "?"), np.arange(len(scores)) if rows is None else np.array(rows), np.array(scores))


def test_both_count_in_their_own_standard_deviations():
    own, words = [9.0, 5.0, -4.0], np.array([0.0, 3.0, 6.0])
    found = with_prior(ranking(own, [4, 2, 7]), words, Prior(0.5))
    expected = np.array(own) / np.std(own) + 0.5 * words / np.std(words)
    order = np.argsort(-expected)
    assert found.rows.tolist() == np.array([4, 2, 7])[order].tolist()
    np.testing.assert_allclose(found.scores, expected[order])
    np.testing.assert_allclose(found.influences, np.array(own)[order])
    np.testing.assert_allclose(found.scores, found.prior + found.scale * np.array(own)[order])


def test_the_unit_of_either_is_no_matter_and_a_large_weight_is_the_order_of_search():
    own, words = np.array([3.0, 1.0, 0.5, -2.0]), np.array([0.0, 1.0, 5.0, 2.0])
    one, other = with_prior(ranking(own), words, Prior(1.0)), with_prior(ranking(own * 1e6), words / 50, Prior(1.0))
    assert one.rows.tolist() == other.rows.tolist()
    np.testing.assert_allclose(one.scores, other.scores)
    assert with_prior(ranking(own), words, Prior(1e9)).rows.tolist() == [2, 3, 1, 0]
    assert with_prior(ranking(own), words, Prior(1e-9)).rows.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-39, 1e-24, 1e20, 1e34])
def test_scores_of_any_size_count_alike(size, dtype):
    own, words = np.array([3.0, 1.0, 0.5, -2.0]), np.array([0.0, 1.0, 5.0, 2.0])
    one = with_prior(ranking(own), words, Prior(0.5))
    other = with_prior(ranking((own * size).astype(dtype)), words, Prior(0.5))
    assert one.rows.tolist() == other.rows.tolist()
    np.testing.assert_allclose(other.scores, one.scores, rtol=1e-5)
    np.testing.assert_allclose(other.influences, one.influences * size, rtol=1e-5)


def test_a_document_without_a_word_in_common_keeps_its_sign_and_ties_go_by_row():
    found = with_prior(ranking([2.0, -1.0, -1.0], [9, 6, 3]), np.array([1.0, 0.0, 0.0]), Prior(1.0))
    assert found.rows.tolist() == [9, 3, 6] and (found.scores[1:] < 0).all()


@pytest.mark.parametrize(("own", "words"), [([1.0, 2.0], [0.0, 0.0]), ([0.0, 0.0], [1.0, 2.0]), ([1.0], [3.0])])
def test_what_is_constant_is_not_divided(own, words):
    found = with_prior(ranking(own), np.array(words), Prior(1.0))
    assert np.isfinite(found.scores).all() and found.rows[0] == len(own) - 1


@pytest.mark.parametrize("wrong", ["bm25", "bm25:", "bm25:0", "bm25:-1", "bm25:inf", "bm25:nan", "knn:1", "1"])
def test_a_prior_that_is_none(wrong):
    with pytest.raises(MsifError, match="write bm25:W"):
        parse_prior(wrong)
    with pytest.raises(MsifError, match="write bm25:W"):
        Options(prior=wrong)
