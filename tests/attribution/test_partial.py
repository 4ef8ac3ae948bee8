"""An interrupted pass over candidates goes on where it was, and never with another pass's scores."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import alone, documents, tiny_lm

from msif.attribution.gradients import Side
from msif.attribution.partial import Once, PartialScores
from msif.attribution.scorers import InfluenceScorer
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM
from msif.models.select import track_modules


class Interrupted(Exception):
    pass


def interrupted(batches, after):
    for number, batch in enumerate(batches):
        if number == after:
            raise Interrupted
        yield batch


def test_an_interrupted_pass_resumes_with_equal_scores(tmp_path):
    model = tiny_lm()
    side = Side(model, track_modules(model), CausalLM())
    scorer = InfluenceScorer(side, side)
    batches = alone(documents([4, 6, 5, 7, 3]))
    vectors = scorer.query_vectors(alone(documents([5], seed=1)))
    whole = scorer.score_vectors(vectors, batches)
    path = tmp_path / "partial.safetensors"
    with pytest.raises(Interrupted):
        scorer.score_vectors(vectors, interrupted(batches, 3), PartialScores(path, lambda: {"run": 1}, every=0.0))
    resumed = PartialScores(path, lambda: {"run": 1})
    assert resumed.batches == 3
    scores = scorer.score_vectors(vectors, batches, resumed)
    assert np.array_equal(scores.values, whole.values) and np.array_equal(scores.candidates, whole.candidates)
    assert PartialScores(path, lambda: {"run": 2}).batches == 0


def scored(batches, partial=None):
    model = tiny_lm()
    side = Side(model, track_modules(model), CausalLM())
    scorer = InfluenceScorer(side, side)
    return scorer.score_vectors(scorer.query_vectors(alone(documents([5], seed=1))), batches, partial)


def numbered(*indices):
    return [replace(text, index=index) for text, index in zip(documents([5, 6, 7]), indices, strict=True)]


@pytest.mark.parametrize("batches", [alone(numbered(0, 0, 0)), [collate(numbered(4, 4, 9))], alone(numbered(4, 2, 4))])
def test_two_candidates_of_one_index_are_refused(batches, tmp_path):
    with pytest.raises(MsifError, match=r"two candidates have the index [04]: number them"):
        scored(batches)
    if len(batches) > 1:  # what an interrupted run had scored of them hides nothing
        path = tmp_path / "partial.safetensors"
        with pytest.raises(Interrupted):
            scored(interrupted(batches, 1), PartialScores(path, lambda: {}, every=0.0))
        with pytest.raises(MsifError, match="two candidates have the index"):
            scored(batches, PartialScores(path, lambda: {}))


def test_numbers_with_gaps_in_any_order_are_no_repetition():
    assert scored(alone(numbered(7, 2, 40))).candidates.tolist() == [2, 7, 40]


def test_one_index_with_two_processes_is_refused(monkeypatch):
    once = Once()
    once.take([1, 2, 3])
    monkeypatch.setattr("msif.distributed.gathered", lambda rows: [rows, {3, 4}])
    with pytest.raises(MsifError, match="the index 3"):
        once.check()
    monkeypatch.setattr("msif.distributed.gathered", lambda rows: [rows, {0, 4}])
    once.check()
