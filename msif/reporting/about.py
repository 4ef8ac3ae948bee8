"""How the numbers of a run were made: models, data, settings, factors, what was left out, and the same again."""

from __future__ import annotations

import shlex
from typing import Any

from msif.json_text import to_json
from msif.reporting.factors import factors_of
from msif.reporting.runs import Run

MODELS = {"pretrained": "pre-trained model", "finetuned": "fine-tuned model", "corpus": "documents", "file": "file"}


def about(run: Run) -> dict[str, Any]:
    """What the view of a run shows beside its scores."""
    config, manifest = run.config, run.manifest
    settings = [[key, shown(value)] for key, value in config.items() if value is not None and key not in MODELS]
    names = [[title, shown(config[key])] for key, title in MODELS.items() if config.get(key) is not None]
    config_file = run.folder / "config.yaml"  # which Result.save does not write
    repeated = shlex.join(["python", "-m", "msif.influence", "--config", str(config_file)])
    return {
        "name": run.name,
        "method": str(config.get("method", "")),
        "names": names,
        "settings": settings,
        "versions": [[name, shown(value)] for name, value in (manifest.get("versions") or {}).items()],
        "weights": [[str(place), shown(value)] for place, value in enumerate(manifest.get("weights") or [], 1)],
        "modules": len(manifest.get("modules") or []),
        "left_out": [[name, shown(reason)] for name, reason in (manifest.get("left_out") or {}).items()],
        "rank_error": max(manifest.get("rank_errors") or [0.0]),
        "without": [shown(reason) for reason in [manifest.get("no_self_influence")] if reason],
        "seconds": [[name, float(value)] for name, value in (manifest.get("seconds") or {}).items()],
        "again": manifest.get("again") or (repeated if config_file.is_file() else None),
        "factors": factors_of(run),
    }


def shown(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value)
