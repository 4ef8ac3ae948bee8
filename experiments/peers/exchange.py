"""The folder through which models, tokens and scores go to another toolkit's environment and back.

It needs numpy and nothing of this project, so adapters read it in any environment. In the folder are

    request.json       the transformers folder of the model, the settings by key, and what must be installed
    documents.jsonl    token ids and labels of each of N documents, and its text
    queries.jsonl      the same of Q queries
    versions.json      what is installed there
    KEY.npy            scores (Q, N) of a setting, positive for a proponent
    KEY.json           its wall seconds, or its error

A label is that of its own position, as transformers take it: a token's id where it is predicted, IGNORED elsewhere. So
every toolkit gets the same tokens and the same supervision, whatever its own tokenization would add.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

IGNORED = -100


@dataclass(frozen=True)
class Row:
    """A document or a query."""

    input_ids: list[int]
    labels: list[int]
    text: str = ""

    @classmethod
    def supervised_from(cls, tokens: Sequence[int], start: int, text: str = "") -> Row:
        """Of tokens that are predicted from place ``start`` on."""
        return cls(list(tokens), [IGNORED] * start + list(tokens[start:]), text)


@dataclass(frozen=True)
class Request:
    """
    Attributes:
        model: a folder of transformers.
        settings: key of a setting -> what the adapter takes.
        needs: package -> the version that must be installed.
    """

    model: str
    settings: Mapping[str, Mapping[str, Any]]
    needs: Mapping[str, str]


@dataclass(frozen=True)
class Result:
    """Of one setting: ``scores`` (Q, N) and wall seconds once the toolkit is loaded, or an error."""

    scores: np.ndarray | None = None
    seconds: float | None = None
    error: str | None = None


def write(folder: Path, request: Request, documents: Sequence[Row], queries: Sequence[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "request.json", asdict(request))
    for name, rows in (("documents", documents), ("queries", queries)):
        lines = [json.dumps(asdict(row)) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def read_request(folder: Path) -> Request:
    return Request(**_read_json(folder / "request.json"))


def read_rows(folder: Path, name: str) -> list[Row]:
    """``name`` is "documents" or "queries"."""
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Row(**json.loads(line)) for line in lines]


def write_versions(folder: Path, versions: Mapping[str, str]) -> None:
    _write_json(folder / "versions.json", dict(versions))


def read_versions(folder: Path) -> dict[str, str]:
    return _read_json(folder / "versions.json")


def write_result(folder: Path, key: str, result: Result) -> None:
    """Its JSON comes last: where that is, all is."""
    if result.scores is not None:
        np.save(folder / f"{key}.npy", np.asarray(result.scores, dtype=np.float64))
    _write_json(folder / f"{key}.json", {"seconds": result.seconds, "error": result.error})


def read_result(folder: Path, key: str) -> Result | None:
    """None where there is none."""
    path = folder / f"{key}.json"
    if not path.is_file():
        return None
    said = _read_json(path)
    return Result(None if said["error"] else np.load(folder / f"{key}.npy"), **said)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
