"""The way in: which documents made the last stage say that?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msif.attribution.damping import Damping
from msif.attribution.inverses import IHVP
from msif.attribution.methods import usual_candidates
from msif.data.corpus import as_corpus
from msif.data.queries import Query, as_queries
from msif.errors import MsifError, refuse_empty
from msif.options import Options
from msif.prepare import Asked, prepare
from msif.result import Result, result_of
from msif.stage import Stage


def attribute(
    stages: Stage | Sequence[Stage],
    queries: str | Path | Sequence[str | tuple[str, str] | Mapping[str, Any] | Query],
    candidates: str | None = None,
    *,
    corpus: Any = None,
    fields: Mapping[str, str] | None = None,
    method: str | None = None,
    damping: Damping | None = None,
    ihvp: str | IHVP = "ekfac",
    **options: Any,
) -> Result:
    """Ranks documents by their influence on what the last stage's model answers (docs/method.md).

    Args:
        stages: one stage, or pre-training and fine-tuning in this order. Factors are fitted, resumed or reused where
            the method reads them.
        queries: a file; or prompts, which the model answers itself, (prompt, completion) pairs, rows, or ``Query``.
        candidates: which documents are scored: "knn:1000", "bm25:100", "index:100", "knn:100+bm25:100", or "all"; where
            nothing is said all of them by an index, else "knn:1000".
        corpus, fields: documents to choose from, and how they are read; those of the first stage by default.
        method: multi-stage with two stages and single-stage with one, unless named: gdp, cosine, cka, trak, logra, or
            trackstar, by an ``index=``.
        damping: λ of the stages and α of the last one.
        ihvp: how inverses are applied, by name or with settings.
        options: see ``Options``; others go to the method's scorer, such as ``normalize="unit"``, ``query_rank=8`` or
            ``halves=4``.

    Raises:
        MsifError: the first thing found wrong, before any long work.
    """
    refuse_empty(queries=queries, corpus=corpus, index=options.get("index"))
    given = [stages] if isinstance(stages, Stage) else list(stages)
    strange = next((one for one in given if not isinstance(one, Stage)), None)
    if strange is not None:
        raise MsifError(f"a stage is {type(strange).__name__}: give msif.Stage(model, data=..., factors=...).")
    if len(given) not in (1, 2):
        raise MsifError(f"{len(given)} stages are given: give one, or pre-training and fine-tuning.")
    if damping is not None and not isinstance(damping, Damping):
        raise MsifError(f"damping is {damping!r}: give msif.Damping(damping=...), or one with damping_scale or alpha.")
    first, last = given[0], given[-1]
    named = method or ("multi-stage" if len(given) == 2 else "single-stage")
    own = {name: options.pop(name) for name in list(options) if name in Options.__dataclass_fields__}
    chosen = Options(
        method=named,
        damping=damping or Damping(),
        ihvp=IHVP(ihvp) if isinstance(ihvp, str) else ihvp,
        candidates=candidates or usual_candidates(named, own.get("index")),
        scorer=options,
        **{"max_length": first.length, "batch_tokens": first.batch_tokens, "memory": first.memory, **own},
    )
    source = first.corpus if corpus is None else as_corpus(corpus)
    if source is None:
        raise MsifError("there are no documents to choose from: give corpus=, or data= of the first stage.")
    asked = Asked(
        chosen,
        first if len(given) == 2 else None,
        last,
        source,
        first.fields if fields is None else dict(fields),
        as_queries(queries, last.task),
        _settings(chosen, given),
    )
    job = prepare(asked)
    return result_of(job, job.score())


def _settings(options: Options, stages: Sequence[Stage]) -> dict[str, Any]:
    """For the page and the manifest."""
    said = {key: value for key, value in asdict(options).items() if key not in ("progress", "memory", "batch_tokens")}
    said["index"] = None if options.index is None else str(options.index)  # a path has no JSON
    names = {"pretrained": stages[0].named["model"]} if len(stages) == 2 else {}
    return {**names, "finetuned": stages[-1].named["model"], **said}
