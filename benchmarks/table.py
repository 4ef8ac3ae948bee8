"""The table of docs/performance.md from the reports of both tools.

python -m benchmarks.table msif.json kronfluence.json [kronfluence-inverse-cdf.json ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

# issue goals: ratio to a training step, and bytes
GOALS = {"covariance": 1.4, "eigendecomposition": 0.2, "lambda": 1.45, "score_1": 0.95, "score_64": 1.15}
MEMORY_GOALS = {"score_64": 2.0e9}


def label(report: dict[str, Any]) -> str:
    """What a column is called: the tool, and how it draws labels where that is a choice."""
    settings = report["settings"]
    draw = f", {settings['label_draw']} draw" if "label_draw" in settings else ""
    heads = "" if settings.get("split_heads", True) else ", no head split"
    return f"{report['tool']} {report['environment']['versions'][report['tool']]}{draw}{heads}"


def ratio(phase: dict[str, Any] | None) -> str:
    """Ratio of medians, and the range over the repeats."""
    if phase is None or "ratio" not in phase:
        return "–"
    low, high = phase["ratio_range"]
    return f"{phase['ratio']:.2f} ({low:.2f}–{high:.2f})"


def peak(phase: dict[str, Any] | None) -> str:
    """Peak memory of the process that runs the phase alone."""
    return "–" if phase is None or "peak_bytes" not in phase else f"{phase['peak_bytes'] / 1e9:.2f} GB"


def table(reports: list[dict[str, Any]]) -> str:
    """One row a phase, two columns a tool."""
    names = list(dict.fromkeys(name for report in reports for name in report["phases"]))
    header = ["phase", "goal", *(f"{label(report)}: {what}" for report in reports for what in ("ratio", "peak"))]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name in names:
        goals = [
            f"≤ {GOALS[name]}×" if name in GOALS else "",
            f"≤ {MEMORY_GOALS[name] / 1e9:g} GB" if name in MEMORY_GOALS else "",
        ]
        cells = [name, ", ".join(goal for goal in goals if goal)]
        for report in reports:
            phase = report["phases"].get(name)
            cells += [ratio(phase), peak(phase)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(flags: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("reports", nargs="+", type=Path, help="JSON files that the benchmarks wrote")
    reports = [json.loads(path.read_text()) for path in parser.parse_args(flags).reports]
    print(table(reports))


if __name__ == "__main__":
    main(sys.argv[1:])
