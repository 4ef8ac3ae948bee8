"""One set of settings carried out: retrainings, members, scores of every method."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from experiments.common.cache import Cache
from experiments.common.judging import Judge
from experiments.common.methods import Method
from experiments.common.parallel import spread
from experiments.digits.images import load_parts
from experiments.digits.members import on_everything, on_halves
from experiments.digits.methods import SOURCE, halved_methods
from experiments.digits.scoring import Methods, Scored, score_all, unrolled_of
from experiments.digits.settings import Settings
from experiments.digits.truth import losses_on_halves

UNROLLED = "exact derivative through all steps"


class Study:
    """
    Attributes:
        methods: all that were scored.
        judge: what the retrainings say.
        scored: name of a method -> scores (K, Q, N).
        halved: the same of the trainings on halves.
        seen: bool (K, N), which images each of these saw.
    """

    def __init__(self, settings: Settings, folder: Path, methods: Methods, overwrite: bool, processes: int) -> None:
        self.settings, self.methods, self.processes = settings, methods(), processes
        self.cache = Cache(folder, asdict(settings), overwrite)
        self.parts = load_parts(settings)
        self.judge = Judge(*losses_on_halves(settings, self.parts, self.cache, processes))
        self.scored: Scored = score_all(methods, settings, self.parts, self.cache, on_everything(settings), processes)
        group = on_halves(settings)
        self.seen, self.halved = group.seen, dict[str, np.ndarray]()
        if settings.halved:
            self.halved = score_all(halved_methods, settings, self.parts, self.cache, group, processes)

    def add_unrolled(self) -> None:
        """The exact derivative, which is made from first weights and not from a member, of a few trainings."""
        one = partial(unrolled_of, self.settings, self.parts, self.cache)
        each = spread(one, range(self.settings.unrolled), self.processes, "differentiating trainings")
        method = Method(UNROLLED)
        self.methods.append(method)
        self.scored[method.name] = np.stack(each)

    def best(self, family: str) -> Method:
        """The damping of a family whose averaged scores do best on these very retrainings."""
        chosen = [method for method in self.methods if method.family == family and method.damping != SOURCE]
        return max(chosen, key=lambda method: self.judge.together(self.scored[method.name]))

    def find(self, family: str, damping: str = "", alpha: str = "") -> Method:
        """The method of this family, damping and α."""
        key = (family, damping, alpha)
        return next(method for method in self.methods if (method.family, method.damping, method.alpha) == key)
