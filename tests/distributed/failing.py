"""A command of which one process is killed, or makes a mistake, at a given point; the rest is the command itself."""

import os
import signal
import sys

from msif.attribution.partial import PartialScores
from msif.cli.parsing import run
from msif.curvature import fit
from msif.errors import MsifError

point, command = sys.argv[1], sys.argv[2]
LAST = os.environ.get("RANK") == os.environ.get("FAILING", "1")


def end(*_):
    if point == "mistake":
        raise MsifError("a mistake in one process: mend it.")
    os.kill(os.getpid(), signal.SIGKILL)


def after(count, function, when=lambda *arguments: True):
    """Ends this process when the function is called for the count-th time."""
    calls = []

    def counted(*arguments, **options):
        result = function(*arguments, **options)
        calls.extend([1] if when(*arguments) else [])
        return end() if len(calls) == count else result

    return counted


if LAST:
    passes = {"covariance": "covariance", "mistake": "covariance", "lambda": "lambda"}
    if point in passes:
        wanted = passes[point]
        fit._Fit._save_checkpoint = after(3, fit._Fit._save_checkpoint, lambda _, step, *rest: step.part == wanted)
    if point == "eigenvectors":
        fit.FactorStore.save_bases = after(1, fit.FactorStore.save_bases)
    if point == "scores":
        PartialScores.save = after(3, PartialScores.save)

if command == "fit":
    from msif.fit_factors import main
else:
    from msif.influence import main

if point == "scores":
    PartialScores.__init__.__kwdefaults__ = None
    PartialScores.__init__.__defaults__ = (None, PartialScores.__init__.__defaults__[1], 0.0)
run(main, sys.argv[3:])
