"""An interrupted pass over candidates goes on where it was, and never with another pass's scores."""

import numpy as np
import pytest
from helpers import alone, documents, tiny_lm

from msif.attribution.gradients import Side
from msif.attribution.partial import PartialScores
from msif.attribution.scorers import InfluenceScorer
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
