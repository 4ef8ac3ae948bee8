"""Runs an adapter in the environment of its toolkit, and reads what it answered."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.peers import exchange
from experiments.peers.toolkits import Setting, Toolkit
from msif.errors import MsifError

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 1800
"""Seconds that one process may take."""


@dataclass(frozen=True)
class Environment:
    """A toolkit with the interpreter of its environment."""

    toolkit: Toolkit
    python: str

    def results(
        self,
        folder: Path,
        model: Path,
        documents: Sequence[exchange.Row],
        queries: Sequence[exchange.Row],
        settings: Sequence[Setting],
    ) -> dict[str, exchange.Result]:
        """Key of each setting -> what came of it, by one model; what the folder has of an earlier run is used again.

        A process that dies has failed at its first setting without a result; another goes on with the rest.

        Raises:
            MsifError: another version is installed, or the adapter cannot start.
        """
        failed: dict[str, exchange.Result] = {}
        while pending := [setting for setting in settings if not self._known(folder, setting, failed)]:
            options = {setting.key: setting.options for setting in pending}
            needs = {self.toolkit.package: self.toolkit.version}
            exchange.write(folder, exchange.Request(str(model.absolute()), options, needs), documents, queries)
            end = self._run(folder)
            for setting in pending:
                found = exchange.read_result(folder, setting.key)
                if found is None:
                    failed[setting.key] = exchange.Result(error=end)
                    break
                if found.error:
                    failed[setting.key] = found
        return {s.key: failed.get(s.key) or _of(folder, s) for s in settings}

    def _known(self, folder: Path, setting: Setting, failed: dict[str, exchange.Result]) -> bool:
        """Whether there are scores, or this run has tried; the failure of an earlier run is tried again."""
        if setting.key in failed:
            return True
        found = exchange.read_result(folder, setting.key)
        if found is not None and found.error:
            (folder / f"{setting.key}.json").unlink()
        return found is not None and not found.error

    def _run(self, folder: Path) -> str:
        """How the adapter's process ended."""
        (folder / "versions.json").unlink(missing_ok=True)
        command = [self.python, "-m", f"experiments.peers.adapters.{self.toolkit.adapter}", str(folder.absolute())]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT)}
        with open(folder / "log.txt", "a", encoding="utf-8") as log:
            try:
                ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=LONGEST)
            except subprocess.TimeoutExpired:
                return f"not done after {LONGEST} s"
            except OSError as error:
                raise MsifError(f"{self.toolkit.flag} {self.python} cannot be run: {error.strerror}.") from error
        self._check_versions(folder)
        return f"the process was killed by {_signal(-ended.returncode)}" if ended.returncode < 0 else "no scores"

    def _check_versions(self, folder: Path) -> None:
        if not (folder / "versions.json").is_file():
            raise MsifError(f"the adapter of {self.toolkit.name} did not start: see {folder / 'log.txt'}.")
        found = exchange.read_versions(folder)[self.toolkit.package]
        if found != self.toolkit.version:
            raise MsifError(
                f"{self.python} has {self.toolkit.package} {found}: install {self.toolkit.version} there, "
                f"or leave {self.toolkit.flag} away."
            )


def _of(folder: Path, setting: Setting) -> exchange.Result:
    found = exchange.read_result(folder, setting.key)
    assert found is not None
    return found


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
