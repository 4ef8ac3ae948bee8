"""How queries are explained: what ``msif.attribute`` and the influence command are told beside stages and documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

from msif.attribution.damping import Damping
from msif.attribution.halves import as_halves
from msif.attribution.inverses import IHVP
from msif.attribution.methods import INDEXED, check_index
from msif.attribution.prior import parse_prior
from msif.candidates.selection import parse_candidates
from msif.errors import MsifError


@dataclass(frozen=True)
class Options:
    """How queries are explained.

    Attributes:
        method: multi-stage, single-stage, gdp, cosine, cka, trak or logra, see ``msif.build_scorer``; or trackstar.
        index: folder of documents' gradients (``msif.make_index``): for trackstar, for multi-stage influence by its
            features, or for candidates "index:N".
        damping, ihvp: of the stages' inverses.
        adapter_hop: whether a fine-tuning that is LoRA is taken as the training of its adapter (docs/method.md), and
            not as one of all weights; α is then that of the adapter's own parameters.
        examples: sequences of a stage's own data that a solver, the hop of an adapter or a projected method takes; None
            is all.
        r: R of the index, "none", "train", "mixed" or "mixed:LAMBDA"; None is the index's own, see ``IndexScorer``.
        search: how candidates "index:N" are found: "exact", or by what "faiss" made of baked vectors.
        candidates: "knn:1000", "bm25:100", "index:1000", "knn:100+bm25:100", or "all".
        embedding_model: of sentence-transformers, for knn.
        prior: "bm25:W", what search adds to each score, W standard deviations for one of BM25+ (``with_prior``).
        measurement: what is explained of an answer: "loss", "margin" or "logit"; None is the method's own.
        scorer: options of the method's scorer, such as ``normalize``, ``query_rank`` or ``halves``.
        max_new_tokens: longest answer of the model, where none is given.
        top_k: proponents and opponents of a query that are shown.
        max_length: tokens kept of a document or query; None is 512, or what the models have.
        batch_tokens: of a padded batch.
        memory: bytes of the device that may be taken, with the models; None is most of what is free.
        progress: whether preselection shows its bars.

    Raises:
        MsifError: an index is missing, or would not be read; an unknown search; no number of tokens or documents; the
            hop of an adapter with another method or inverse.
    """

    method: str = "multi-stage"
    index: str | Path | None = None
    damping: Damping = field(default_factory=Damping)
    ihvp: IHVP = field(default_factory=IHVP)
    adapter_hop: bool = False
    examples: int | None = None
    r: str | None = None
    search: str = "exact"
    candidates: str = "knn:1000"
    embedding_model: str | None = None
    prior: str | None = None
    measurement: str | None = None
    scorer: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 32
    top_k: int = 10
    max_length: int | None = None
    batch_tokens: int = 8192
    memory: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise MsifError(f"{name} is {value!r}: give an integer of 1 or more.")
        if self.prior is not None:
            parse_prior(self.prior)
        if self.nears:
            as_halves(self.scorer["halves"])
        check_index(self.method, self._preselects, self.index, self.search)
        if self.r is not None and self.index is None:
            raise MsifError(f"R is {self.r!r} without an index, of which it is: give index=, or no r=.")
        if self.adapter_hop and (self.method != "multi-stage" or self.ihvp.kind != "ekfac"):
            raise MsifError(
                "--adapter-hop is for multi-stage influence with --ihvp ekfac "
                f"(not --method {self.method} --ihvp {self.ihvp.kind}): leave it out."
            )

    @property
    def nears(self) -> bool:
        """Whether scores are means over models nearby."""
        return "halves" in self.scorer

    @property
    def steps_nearby(self) -> bool:
        """Whether the first stage's data are gone over for these, which noise alone does not take."""
        return self.nears and as_halves(self.scorer["halves"]).step != 0

    @property
    def _preselects(self) -> bool:
        return parse_candidates(self.candidates).of_index is not None

    @property
    def scores_by_index(self) -> bool:
        """Whether documents' features are read from the index, and not only candidates chosen by it."""
        return self.method in INDEXED or (self.index is not None and not self._preselects)
