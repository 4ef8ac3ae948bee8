"""Methods as experiments list them: each under a name, at each damping, with what makes its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.common.cache import hashed
from msif.attribution.scorers import Scorer

Search = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""(queries, texts) -> scores (Q, N)."""


@dataclass(frozen=True)
class Method:
    """One method at one damping. Scores are positive for a proponent.

    Attributes:
        family: methods of one family differ by damping and α only.
        damping, alpha: as tables show them; "" where there is none.
        scorer: from the models that an experiment explains to a scorer of the library.
        search: in place of a scorer, of what reads texts alone.
        prior: how much BM25+ counts beside the scorer's scores (``msif.attribution.prior``).
        main: False for what only the longest tables show: other dampings and variants.
        removed: whether its top documents are taken out of training.
        dear: whether it is asked of a few models, or about a few queries only; the experiment says which.
        tau: whether it reads τ of the stages, for which their training must be known.
        settings: what its scores depend on, beside models, data and this name.
    """

    family: str
    damping: str = ""
    alpha: str = ""
    scorer: Callable[[Any], Scorer] | None = None
    search: Search | None = None
    prior: float | None = None
    main: bool = True
    removed: bool = False
    dear: bool = False
    tau: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """In tables, and unique among methods of the same settings."""
        shown = (("λ", self.damping), ("α", self.alpha))
        return ", ".join([self.family, *(f"{letter} = {value}" for letter, value in shown if value)])

    @property
    def key(self) -> str:
        """Of its files."""
        readable = "".join(c if c.isalnum() or c in ".-" else "_" for c in self.name)
        return f"{readable}.{hashed([self.name, dict(self.settings)])}"

    def build(self, models: Any) -> Scorer:
        """The scorer of these models."""
        assert self.scorer is not None, f"{self.name} has no scorer"
        return self.scorer(models)
