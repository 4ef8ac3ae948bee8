"""The library's own methods, single stage: the pre-trained model is asked, and is that of the documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from experiments.common.methods import Method
from experiments.common.search import search_by_words
from experiments.peers.toolkits import LAYERS, MAPS
from experiments.retraining.members import Member
from experiments.retraining.methods import TRAK_PROJECTION
from experiments.retraining.refitted import with_own_factors
from experiments.retraining.trackstar import TrackStarScorer
from msif.attribution.damping import Damping
from msif.attribution.halves import Halves
from msif.attribution.scorers import Scorer
from msif.attribution.stages import build_scorer


@dataclass(frozen=True)
class Own:
    """
    Attributes:
        method: a family of the library; its damping is the setting that tables show.
        stage: which factors of a model it reads, an attribute of ``Model``; "" for none.
    """

    method: Method
    stage: str = ""


FORETOLD = Halves(4, 0.3)
NEARBY = f"{MAPS}, damping 0.1 mean, {FORETOLD.count} halves foretold"
"""The setting of one more that others are compared with."""
STAGES = {MAPS: "stage", LAYERS: "layers", f"{MAPS}, 4 segments": "in_segments"}
DAMPINGS = {"damping 0.1 mean": Damping(), "damping 1/τ": Damping("auto")}


def _staged(family: str, method: str, maps: str = MAPS, damping: str = "", **options: Any) -> Own:
    """By a method of the library on the pre-trained model alone."""

    def scorer(member: Member) -> Scorer:
        return build_scorer(method, getattr(member.pretrained, STAGES[maps]), None, DAMPINGS.get(damping), **options)

    unit = "unit documents" if options.get("normalize") == "unit" else ""
    near = f"{options['halves'].count} halves foretold" if "halves" in options else ""
    shown = ", ".join(filter(None, [maps, damping, unit, near]))
    return Own(Method(family, shown, scorer=scorer), STAGES[maps] if method in ("single-stage", "source") else "")


def _trak(member: Member) -> Scorer:
    projection = replace(TRAK_PROJECTION, seed=member.number)
    return build_scorer("trak", member.pretrained.stage, None, projection=projection)


def _trackstar(member: Member) -> Scorer:
    """Queries, too, on the pre-trained model."""
    return TrackStarScorer(replace(member, finetuned=member.pretrained))


def _own_methods() -> list[Own]:
    ekfac: Callable[..., Own] = lambda *given, **options: _staged("EK-FAC", "single-stage", *given, **options)  # noqa: E731
    return [
        *(ekfac(maps, damping) for maps in (MAPS, LAYERS) for damping in DAMPINGS),
        *(ekfac(MAPS, damping, normalize="unit") for damping in DAMPINGS),
        ekfac(MAPS, "damping 0.1 mean", halves=FORETOLD),
        ekfac(MAPS, "damping 0.1 mean", normalize="unit", halves=FORETOLD),
        Own(
            Method(
                "EK-FAC", f"{NEARBY}, own factors", scorer=with_own_factors("single-stage", Damping(), Halves(step=1.0))
            )
        ),
        _staged("SOURCE", "source"),
        _staged("SOURCE", "source", f"{MAPS}, 4 segments"),
        *(_staged("gradient dot product", "gdp", maps) for maps in (MAPS, LAYERS)),
        _staged("gradient cosine", "cosine"),
        Own(Method("TrackStar", "64 × 64 features, Adam's moments", scorer=_trackstar)),
        Own(Method("TRAK", "1024 columns", scorer=_trak)),
        Own(Method("BM25+", search=search_by_words)),
    ]


METHODS = _own_methods()
"""The first is at the defaults of the command line, and what others are compared with."""
