"""α of the multi-stage method where the command line leaves it open (docs/digits.md says what it is worth)."""

from __future__ import annotations

import argparse
from dataclasses import replace

from msif.attribution.stages import Stage
from msif.models.loading import LoadedModel
from msif.models.training import TrainingUnknown, natural_tau


def with_alpha(
    args: argparse.Namespace, finetuned: LoadedModel | None, stage: Stage | None
) -> tuple[argparse.Namespace, Stage | None, str | None]:
    """The flags with the α that the run takes in the place of none, so that its configuration repeats it.

    "auto", 1/τ, beside ``--damping auto`` and where the fine-tuning tells τ; else 0. Nobody asked for it, so nothing
    that lies beside the model is an error. Only multi-stage influence has an α.

    Returns:
        Also the fine-tuned stage with its τ, and a warning where α is 0.
    """
    if args.alpha is not None or args.method != "multi-stage" or finetuned is None or stage is None:
        return args, stage, None
    warning = None
    if args.damping != "auto":  # with it, τ is there
        try:
            rates = args.learning_rate_sum or [None]
            tau = natural_tau(finetuned.name, finetuned.model, stage.side.tracked, rates[-1])
            stage = replace(stage, tau=tau)
        except TrainingUnknown as error:
            warning = (
                f"--alpha is 0, since no trainer_state.json and optimizer.pt beside {finetuned.name} tell the scale of "
                f"its fine-tuning ({error.reason}): give --alpha X (1/τ of fine-tuning), or if only its learning rates "
                "are missing --learning-rate-sum."
            )
    return argparse.Namespace(**{**vars(args), "alpha": 0.0 if warning else "auto"}), stage, warning
