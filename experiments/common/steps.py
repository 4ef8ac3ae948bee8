"""Experiments that run the commands which a user would type."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text


@dataclass
class Steps:
    """Runs commands one after the other, as a user would type them, and keeps the time."""

    console: Console
    environment: dict[str, str]
    seconds: list[float] = field(default_factory=list)

    def run(self, title: str, arguments: Sequence[str], output: Path | None = None) -> None:
        """Run `python ARGUMENTS`; its standard output goes to a file, if one is given."""
        command = [_python(), *arguments]
        words = shlex.join(command) + (f" > {shlex.quote(str(output))}" if output else "")
        self.console.print(f"\n[bold]{len(self.seconds) + 1}. {title}[/]")
        self.console.print(Text(f"$ {words}", style="dim"), soft_wrap=True)
        start = time.perf_counter()
        with open(output, "w", encoding="utf-8") if output else nullcontext() as handle:
            status = subprocess.run(command, env={**os.environ, **self.environment}, stdout=handle).returncode
        if status:
            raise SystemExit(status)  # the command has said why
        self.seconds.append(time.perf_counter() - start)


def _python() -> str:
    """This interpreter, relative to the current folder where it lies within."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def console_for_commands() -> Console:
    """As wide as the terminal, at most 120 columns, which is also the width where there is none."""
    terminal = Console()
    return Console(width=min(terminal.width, 120) if terminal.is_terminal else 120, highlight=False)
