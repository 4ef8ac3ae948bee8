"""What all adapters do: check versions, score setting by setting, and report what went wrong."""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.peers import exchange


class Scored(NamedTuple):
    """
    Attributes:
        scores: (Q, N), positive for a proponent.
        shared: seconds of work for this setting that was done for an earlier one.
    """

    scores: np.ndarray
    shared: float = 0.0


Score = Callable[[Mapping[str, Any], Path], Scored]
"""From the options of a setting, and an empty folder."""
Prepare = Callable[[exchange.Request, list[exchange.Row], list[exchange.Row]], Score]
"""From a request, documents and queries."""


def serve(prepare: Prepare) -> None:
    """Answers the request in the folder that the command line names. A setting's failure is no other's, and each is
    written as it is there, so that a process that is killed leaves what it had done."""
    folder = Path(sys.argv[1]).absolute()
    request = exchange.read_request(folder)
    versions = {name: _installed(name) for name in (*request.needs, "torch", "transformers")}
    exchange.write_versions(folder, versions)
    if any(versions[name] != needed for name, needed in request.needs.items()):
        return
    score = prepare(request, exchange.read_rows(folder, "documents"), exchange.read_rows(folder, "queries"))
    for key, options in request.settings.items():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            exchange.write_result(folder, key, _result(score, options, Path(work)))


def _result(score: Score, options: Mapping[str, Any], work: Path) -> exchange.Result:
    start = time.perf_counter()
    try:
        scored = score(options, work)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return exchange.Result(error=f"{type(error).__name__}: {error}")
    return exchange.Result(scored.scores, time.perf_counter() - start + scored.shared)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
