"""How far fine-tuning moved a model: python -m experiments.proximity --pretrained M0 --finetuned M1.

‖θ_ft − θ_pt‖ / ‖θ_pt‖ by layer and kind of map, and the cosine of the parameters. With the pre-trained model's factors
also where in the eigenbasis of the curvature the change lies, and with data the loss on the way from one model to the
other beside its quadratic expansion.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.common.running import experiment_parser, quiet
from msif.cli.parsing import Parser, configuration, positive_int, run, set_up_logging
from msif.errors import MsifError


def parser() -> Parser:
    flags = experiment_parser("proximity", __doc__)
    flags.add_argument("--pretrained", metavar="M0", help="folder or hub name of the first model (required)")
    flags.add_argument("--finetuned", metavar="M1", help="folder or hub name of the model tuned from it (required)")
    flags.need("--pretrained", "--finetuned")
    flags.add_argument(
        "--task", default="lm", choices=["lm", "classification"], help="what the fine-tuned model predicts"
    )
    flags.add_argument("--pretrained-factors", metavar="F0", help="folder that msif.fit_factors wrote for M0")
    flags.add_argument("--data-file", metavar="D", help="text on which the loss of M0 is measured; needs the factors")
    flags.add_argument("--text-field", metavar="F", help="field of the text (default: text, where there is one)")
    flags.add_argument(
        "--examples", type=positive_int, default=256, metavar="N", help="texts used of it (default: %(default)s)"
    )
    return flags


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse(arguments)
    if options.data_file and not options.pretrained_factors:
        raise MsifError("--data-file compares a loss with the factors' prediction: give --pretrained-factors too.")
    set_up_logging(False)
    quiet(options.threads)
    from experiments.proximity.distances import proximity
    from experiments.proximity.measure import curvature, way
    from experiments.proximity.report import write
    from msif.curvature.store import FactorStore
    from msif.models.loading import load_model

    store = FactorStore.open(options.pretrained_factors) if options.pretrained_factors else None
    # a change this small is below half precision's rounding of the loss
    dtype = "float32" if options.data_file else "auto"
    pretrained = load_model(options.pretrained, "lm", dtype, options.device)
    finetuned = load_model(options.finetuned, options.task, dtype, options.device)
    moved = curvature(store, pretrained, finetuned) if store else None
    measured = way(moved, pretrained, finetuned, options) if moved and options.data_file else None
    results = Path(options.results or Path(options.output) / "report")
    write(results, configuration(options), proximity(pretrained.model, finetuned.model), moved, measured)
    print((results / "proximity.md").read_text(encoding="utf-8"))
    print(f"The tables and plots are in {results}.")


if __name__ == "__main__":
    run(main)
