"""LAMA's T-REx files: `lama_trex/P19.jsonl.gz` and so on, one relation each (Petroni et al. 2019)."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.facts.collect import Collector
from experiments.facts.facts import FactData
from msif.errors import MsifError

MASK = "[MASK]"


def load_lama(folder: str | Path, relations: Sequence[str] | None = None) -> FactData:
    """The facts of LAMA and the unique sentences of their evidence.

    Args:
        folder: holds ``lama_trex``.
        relations: those to read, such as "P19"; all by default.

    Raises:
        MsifError: the files are not there, or a line is not one of LAMA's facts.
    """
    collector = Collector()
    for path in _files(Path(folder) / "lama_trex", relations):
        for number, row in _rows(path):
            try:
                fact = collector.fact(row["predicate_id"], row["sub_uri"], row["sub_label"], row["obj_label"])
                for item in row["evidences"]:
                    # a sentence without mask stays as it is, and the collector looks for the object in it
                    text = item["masked_sentence"].replace(MASK, item["obj_surface"])
                    collector.evidence(fact, text, item["obj_surface"])
            except (KeyError, TypeError) as error:
                raise MsifError(
                    f"{path}, line {number}: not a fact of LAMA ({error!r}): get the file again."
                ) from error
    return collector.data()


def _files(folder: Path, relations: Sequence[str] | None) -> list[Path]:
    found = {path.name.split(".")[0]: path for path in sorted(folder.glob("P*.jsonl.gz"))}
    if not found:
        raise MsifError(f"there is no P*.jsonl.gz in {folder}: give the folder that holds lama_trex with --data.")
    if missing := [relation for relation in relations or () if relation not in found]:
        raise MsifError(f"{folder} has no file for {', '.join(missing)}: choose among {', '.join(found)}.")
    return [found[relation] for relation in dict.fromkeys(relations or found)]


def _rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Lines with their numbers."""
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                yield number, json.loads(line)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise MsifError(f"{path} cannot be read after line {number} ({error}): get the file again.") from error
