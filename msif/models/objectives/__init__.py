"""Objectives: what a batch's loss is, how labels are drawn from the model, and what is measured on a query."""

from msif.models.objectives.base import Measurement, Objective, generators_for
from msif.models.objectives.categorical import Categorical, inverse_cdf
from msif.models.objectives.classification import SequenceClassification
from msif.models.objectives.document import DocumentHead
from msif.models.objectives.language import CausalLM
from msif.models.objectives.multilabel import MultiLabelClassification
from msif.models.objectives.regression import Regression

__all__ = [
    "Categorical",
    "CausalLM",
    "DocumentHead",
    "Measurement",
    "MultiLabelClassification",
    "Objective",
    "Regression",
    "SequenceClassification",
    "generators_for",
    "inverse_cdf",
]
