"""What a stage's own training, by the files that it left, says of its natural scale."""

from msif.models.training.checkpoints import training_segments
from msif.models.training.files import TrainingUnknown
from msif.models.training.tau import adapter_tau, natural_tau, training_is_known

__all__ = ["TrainingUnknown", "adapter_tau", "natural_tau", "training_is_known", "training_segments"]
