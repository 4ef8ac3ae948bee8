"""Both models with what methods need of them: their data as batches, their factors, their natural scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.common.cache import keyed
from experiments.fact_tracing.options import FitOptions
from experiments.facts.reading import Asked, Pair
from msif.attribution.gradients import Side
from msif.attribution.stages import FittedStage
from msif.curvature.factors import ModuleFactors
from msif.curvature.fit import FitSettings, fit
from msif.data.batching import TokenBatches, batches_of, spread
from msif.data.corpus import corpus_from_rows
from msif.data.documents import Batch
from msif.data.format import Format
from msif.data.queries import Query, encode_queries
from msif.models.loading import LoadedModel, load_model
from msif.models.objectives import CausalLM
from msif.models.roles import longest
from msif.models.select import track_modules
from msif.models.training import natural_tau

Which = Literal["pretrained", "finetuned"]
Tracking = Literal["heads", "whole-heads", "unembedding"]
"""The linear maps of the layers, each head of q, k and v a block of its own; each map one block; or the first with the
unembedding."""


@dataclass
class Models:
    """The pair in memory; factors are fitted when a method first asks for them, and kept in ``folder``."""

    pair: Pair
    folder: Path
    options: FitOptions = field(default_factory=FitOptions)
    device: str = "cpu"
    batch_tokens: int = 8192
    overwrite: bool = False

    def __post_init__(self) -> None:
        self._stages: dict[tuple[Which, Tracking], FittedStage] = {}
        self._factors: dict[tuple[Which, Tracking], dict[str, ModuleFactors]] = {}

    @cached_property
    def pretrained(self) -> LoadedModel:
        return load_model(self.pair.pretrained, dtype="float32", device=self.device)

    @cached_property
    def finetuned(self) -> LoadedModel:
        return load_model(self.pair.finetuned, dtype="float32", device=self.device)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the models and their data are."""
        weights = {which: self.loaded(which).weights for which in ("pretrained", "finetuned")}
        return {**weights, "data": [self.data(which).identity() for which in ("pretrained", "finetuned")]}

    def loaded(self, which: Which) -> LoadedModel:
        return self.pretrained if which == "pretrained" else self.finetuned

    def stage(self, which: Which, tracking: Tracking = "heads") -> FittedStage:
        """A stage without factors and τ: all that gradients alone need."""
        if (which, tracking) not in self._stages:
            model = self.loaded(which).model
            modules = "maps" if tracking == "unembedding" else "layers"
            side = Side(model, track_modules(model, modules, split_heads=tracking != "whole-heads"), CausalLM())
            self._stages[which, tracking] = FittedStage(side, batches=self.data(which))
        return self._stages[which, tracking]

    def fitted(self, which: Which, tracking: Tracking = "heads", *, tau: bool = False) -> FittedStage:
        """A stage with its factors, and with the natural scale of its training where that is asked for.

        Raises:
            MsifError: the folder of the model lacks what τ is read from.
        """
        stage = self.stage(which, tracking)
        if (which, tracking) not in self._factors:
            self._factors[which, tracking] = self._fit(which, tracking)
        factors = self._factors[which, tracking]
        loaded = self.loaded(which)
        scale = natural_tau(loaded.name, loaded.model, stage.side.tracked) if tau else None
        return replace(stage, factors=factors, tau=scale)

    def solved(self, which: Which, examples: int | None, *, tau: bool = False) -> FittedStage:
        """A fitted stage whose inverse is solved for on so many of its sequences."""
        return replace(self.fitted(which, tau=tau), batches=self.data(which, examples))

    def _fit(self, which: Which, tracking: Tracking) -> dict[str, ModuleFactors]:
        side, loaded = self.stage(which, tracking).side, self.loaded(which)
        batches = self.data(which, self.options.examples)
        identity = {"weights": loaded.weights, "data": batches.identity(), "tracking": tracking, **asdict(self.options)}
        folder = keyed(self.folder, f"{which}-{tracking}", identity, self.overwrite)
        settings = FitSettings(label_samples=self.options.label_samples, seed=self.options.seed)
        return fit(loaded.model, side.tracked, side.objective, batches, folder, settings).load_all()

    def data(self, which: Which, examples: int | None = None) -> TokenBatches:
        """A stage's own training data: sentences, or questions with answers and the end token that follows them."""
        if which == "pretrained":
            return spread(self.sentences(None), examples)
        end = self.finetuned.tokenizer.eos_token or ""
        rows = [{**row, "completion": row["completion"] + end} for row in self.pair.finetuning]
        format = Format(prompt="prompt", completion="completion")
        return spread(self._batches(corpus_from_rows(rows, "finetune.jsonl"), format, self.finetuned), examples)

    def sentences(self, rows: np.ndarray | None) -> TokenBatches:
        """Sentences of the attribution set, as the pre-trained model reads them; None is all of them."""
        batches = self._batches(self._corpus, Format(text="text"), self.pretrained)
        return batches if rows is None else replace(batches, indices=rows.tolist())

    def queries(self, asked: Sequence[Asked]) -> list[Batch]:
        """Questions with answers as batches, numbered from 0 in this order."""
        queries = [Query(fact.id, fact.prompt, fact.completion) for fact in asked]
        documents = encode_queries(queries, self.finetuned.tokenizer, max_length=self._longest)
        return batches_of(documents, self.batch_tokens)

    @cached_property
    def _corpus(self) -> Any:
        return corpus_from_rows([{"text": text} for text in self.pair.texts], "corpus.jsonl")

    @cached_property
    def _longest(self) -> int:
        return longest(None, [self.pretrained, self.finetuned])

    def _batches(self, corpus: Any, format: Format, loaded: LoadedModel) -> TokenBatches:
        return TokenBatches(corpus, format, loaded.tokenizer, self._longest, self.batch_tokens)
