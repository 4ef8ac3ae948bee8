"""A tiny problem that fits in a tenth of a second."""

import pytest
from helpers import documents, tiny_lm, track_modules

import msif
from msif.data.documents import collate
from msif.models.objectives import CausalLM


class Problem:
    """A model, what is tracked of it, its objective, and its data in six batches."""

    def __init__(self, modules: str = "all") -> None:
        self.model = tiny_lm()
        self.tracked = track_modules(self.model, modules)
        texts = documents([5, 9, 3, 7, 8, 4, 6, 5, 9, 7, 4, 8])
        self.batches = [collate(texts[start : start + 2]) for start in range(0, len(texts), 2)]

    def fit(self, output, settings=None, batches=None, **options):
        batches = self.batches if batches is None else batches
        return msif.fit(self.model, self.tracked, CausalLM(), batches, output, settings, **options)


@pytest.fixture(scope="session")
def problem():
    return Problem()


@pytest.fixture(scope="session")
def problem_of():
    """The class itself, for other modules."""
    return Problem


@pytest.fixture(scope="session")
def finished(problem, tmp_path_factory):
    """Factors of the problem; not to be changed."""
    return problem.fit(tmp_path_factory.mktemp("fit") / "factors")
