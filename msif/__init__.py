"""msif: which pre-training documents made this fine-tuned language model say that?

The public names below are loaded when they are first used, so that ``--help`` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_HOME = {
    "MsifError": "msif.errors",
    "load_corpus": "msif.data.corpus",
    "choose_format": "msif.data.format",
    "TokenBatches": "msif.data.batching",
    "load_model": "msif.models.loading",
    "merge_adapter": "msif.models.merging",
    "track_modules": "msif.models.select",
    "register_layout": "msif.models.layouts",
    "Objective": "msif.models.objectives",
    "Categorical": "msif.models.objectives",
    "CausalLM": "msif.models.objectives",
    "SequenceClassification": "msif.models.objectives",
    "MultiLabelClassification": "msif.models.objectives",
    "Regression": "msif.models.objectives",
    "natural_tau": "msif.models.training",
    "evidence_tau": "msif.attribution.evidence",
    "FitSettings": "msif.curvature.fit",
    "FactorStore": "msif.curvature.store",
    "fit": "msif.curvature.fit",
    "EKFAC": "msif.curvature.preconditioners",
    "Identity": "msif.curvature.preconditioners",
    "DampedInverse": "msif.curvature.filters",
    "ProximalHop": "msif.curvature.filters",
    "Decay": "msif.curvature.filters",
    "Accumulation": "msif.curvature.filters",
    "DampedPower": "msif.curvature.filters",
    "Side": "msif.attribution.gradients",
    "InfluenceScorer": "msif.attribution.scorers",
    "EnsembleScorer": "msif.attribution.scorers",
    "Scores": "msif.attribution.scorers",
    "Stage": "msif.stage",
    "attribute": "msif.run",
    "Result": "msif.result",
    "average_runs": "msif.reporting.averages",
    "Options": "msif.options",
    "FittedStage": "msif.attribution.stages",
    "Damping": "msif.attribution.damping",
    "Halves": "msif.attribution.halves",
    "build_scorer": "msif.attribution.stages",
    "IHVP": "msif.attribution.inverses",
    "TRAKScorer": "msif.attribution.trak",
    "LoGraScorer": "msif.attribution.logra",
    "CKAScorer": "msif.attribution.cka",
    "GGN": "msif.curvature.ggn",
    "CG": "msif.curvature.cg",
    "relative_residual": "msif.curvature.cg",
    "query_gradients": "msif.attribution.gradients",
    "build_selector": "msif.candidates.build",
    "make_index": "msif.indexing",
    "IndexSettings": "msif.index.settings",
    "GradientIndex": "msif.index.storage",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from msif.attribution.cka import CKAScorer
    from msif.attribution.damping import Damping
    from msif.attribution.evidence import evidence_tau
    from msif.attribution.gradients import Side, query_gradients
    from msif.attribution.halves import Halves
    from msif.attribution.inverses import IHVP
    from msif.attribution.logra import LoGraScorer
    from msif.attribution.scorers import EnsembleScorer, InfluenceScorer, Scores
    from msif.attribution.stages import FittedStage, build_scorer
    from msif.attribution.trak import TRAKScorer
    from msif.candidates.build import build_selector
    from msif.curvature.cg import CG, relative_residual
    from msif.curvature.filters import Accumulation, DampedInverse, DampedPower, Decay, ProximalHop
    from msif.curvature.fit import FitSettings, fit
    from msif.curvature.ggn import GGN
    from msif.curvature.preconditioners import EKFAC, Identity
    from msif.curvature.store import FactorStore
    from msif.data.batching import TokenBatches
    from msif.data.corpus import load_corpus
    from msif.data.format import choose_format
    from msif.errors import MsifError
    from msif.index.settings import IndexSettings
    from msif.index.storage import GradientIndex
    from msif.indexing import make_index
    from msif.models.layouts import register_layout
    from msif.models.loading import load_model
    from msif.models.merging import merge_adapter
    from msif.models.objectives import (
        Categorical,
        CausalLM,
        MultiLabelClassification,
        Objective,
        Regression,
        SequenceClassification,
    )
    from msif.models.select import track_modules
    from msif.models.training import natural_tau
    from msif.options import Options
    from msif.reporting.averages import average_runs


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'msif' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
