"""α of the multi-stage method where the command line leaves it open (docs/digits.md says what it is worth)."""

from __future__ import annotations

import argparse
import logging
from typing import Literal

log = logging.getLogger(__name__)


def with_alpha(args: argparse.Namespace) -> argparse.Namespace:
    """The flags, with the α that the run takes in the place of none, so that its configuration repeats it.

    "auto", 1/τ, beside ``--damping auto`` and where the fine-tuning is known; else 0. Only multi-stage influence has an
    α.
    """
    if args.alpha is not None or args.method != "multi-stage" or not args.finetuned:
        return args
    return argparse.Namespace(**{**vars(args), "alpha": _default(args)})


def _default(args: argparse.Namespace) -> float | Literal["auto"]:
    from msif.models.adapters import is_adapter
    from msif.models.training import training_is_known  # slow to import

    if is_adapter(args.finetuned):
        return 0.0  # its optimizer knows the adapter's own parameters, and none of the weights that it is merged into
    known = args.damping == "auto" or args.learning_rate_sum or training_is_known(args.finetuned)
    return "auto" if known else 0.0


def warn_of_no_pull(given: argparse.Namespace, args: argparse.Namespace) -> None:
    """Says that α is 0 where nobody asked for that.

    Args:
        given: the flags before ``with_alpha``.
    """
    if given.alpha is not None or args.alpha != 0:
        return
    from msif.models.adapters import is_adapter

    if is_adapter(args.finetuned):
        log.warning(
            "--alpha is 0, since %s is an adapter: how its own parameters were trained says nothing of a pull of the "
            "weights that it is merged into; give --alpha X.",
            args.finetuned,
        )
    else:
        log.warning(
            "--alpha is 0, since no trainer_state.json and optimizer.pt beside %s tell how it was fine-tuned: "
            "save them there, or give --alpha X (1/τ of fine-tuning), or for SGD --learning-rate-sum.",
            args.finetuned,
        )
