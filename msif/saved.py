"""A folder that results are saved in: what it holds of others is not lost, and not mixed with these."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from msif.attribution.partial import partial_files
from msif.attribution.results import Ranking
from msif.errors import MsifError
from msif.json_text import to_json
from msif.reporting.runs import Run, read_run

CONFIG = "config.yaml"
"""What the command leaves beside its results."""
ASKED = ("prompt", "completion", "label")


def check_folder(
    folder: Path,
    provenance: Mapping[str, Any],
    rankings: Sequence[Ranking],
    ids: Mapping[int, Any],
    overwrite: bool,
) -> None:
    """
    Args:
        overwrite: whether results of other settings may go.

    Raises:
        MsifError: the folder holds something else, or results of other settings: the first difference is named.
    """
    if folder.exists() and not folder.is_dir():
        raise MsifError(f"{folder} is a file: give a folder.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        there = read_run(folder)
    except MsifError:
        raise MsifError(f"{folder} is not empty and holds no results of msif: choose another folder.") from None
    changed = None if overwrite else _difference(there, provenance, rankings, ids)
    if changed:
        raise MsifError(
            f"{folder} holds results with other settings ({changed}): choose another folder, or give overwrite=True."
        )


def remove_what_tells_of_another(folder: Path) -> None:
    """The command's own files beside its results: of these they would be wrong."""
    for file in [folder / CONFIG, *partial_files(folder)]:
        with suppress(FileNotFoundError):
            file.unlink()


def _difference(
    there: Run, provenance: Mapping[str, Any], rankings: Sequence[Ranking], ids: Mapping[int, Any]
) -> str | None:
    config = json.loads(to_json(dict(provenance["config"])))
    for key in sorted(config.keys() | there.config.keys()):
        if there.config.get(key) != config.get(key):
            return f"{key} is {there.config.get(key)!r} there and {config.get(key)!r} now"
    if there.manifest.get("weights") != json.loads(to_json(provenance.get("weights"))):
        return "the models' weights are others"
    if list(there.scores) != [ranking.query.id for ranking in rankings]:
        return f"there are {len(there.scores)} queries there and {len(rankings)} now, or of other names"
    for ranking in rankings:
        query, told = ranking.query, there.told.get(ranking.query.id, {})
        if [told.get(name) for name in ASKED] != json.loads(to_json([getattr(query, name) for name in ASKED])):
            return f"query '{query.id}' is another"
        if set(there.scores[query.id].ids) != {str(ids[row]) for row in ranking.rows.tolist()}:
            return f"the candidates of query '{query.id}' are others"
    if there.manifest.get("documents", provenance.get("documents")) != provenance.get("documents"):
        return "the documents say something else"
    return None
