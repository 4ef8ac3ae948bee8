"""Does the evidence tell the damping as well as the optimizer's state? python -m experiments.evidence.

The pairs of experiments/counterfactual are asked the statements of experiments/peers (one stage) and the questions of
experiments/counterfactual (two stages), with τ of their trainings from the state that the optimizer left, and from the
evidence, which reads weights and factors alone. The trainings on halves judge both, and what an earlier run has made is
used again.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.evidence.methods import one_stage, two_stages
from experiments.evidence.plots import draw
from experiments.evidence.scales import scale_table
from experiments.peers.both import Both, parser_of_both
from experiments.retraining.command import write
from experiments.retraining.families import family_table
from msif.cli.parsing import run


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser_of_both("evidence", __doc__).parse(arguments)
    both = Both(options, one_stage, two_stages)
    gain, title = "more than by the optimizer's state", "with τ of the optimizer's state and of the evidence"
    write(both.results, "evidence", family_table(both.parts, ("τ told by",), gain, title), both.configuration)
    write(both.results, "scales", scale_table(both.asked.members), both.configuration)
    draw(both.results)


if __name__ == "__main__":
    run(main)
