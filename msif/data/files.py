"""Where a corpus lies, and what is wrong with a file that cannot be read."""

from __future__ import annotations

import glob
import gzip
import json
import logging
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from msif.errors import MsifError

log = logging.getLogger(__name__)

# File suffix -> the loader of `datasets` that reads it; each but Parquet may be compressed (".gz").
LOADERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
KNOWN = ".jsonl, .json, .csv, .txt (each also .gz) and .parquet"
HUB_NAME = re.compile(r"^(?P<name>[\w-][\w.-]*(/[\w-][\w.-]*)?)(:(?P<config>[\w.-]+))?$")
SPLIT_WORDS = {"train": "train", "test": "test", "eval": "test"} | dict.fromkeys(
    ("validation", "valid", "dev"), "validation"
)


@dataclass(frozen=True)
class LocalFiles:
    """Files of one kind, in reading order, and the `datasets` loader for them."""

    loader: str
    paths: tuple[Path, ...]

    def state(self) -> str:
        """A name for the files as they lie on disk now.

        `datasets` keys its cache by path and modification time alone, which `cp -p` or `tar` can carry over to
        other content; size and inode change time tell such files apart.
        """
        stats = [(str(path), path.stat()) for path in self.paths]
        parts = [(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats]
        return blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def loader_of(path: Path) -> str | None:
    """The `datasets` loader for a file, by its suffix; None where the suffix is unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        loader = LOADERS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return None if loader == "parquet" else loader
    return LOADERS.get(suffixes[-1]) if suffixes else None


def looks_local(source: str) -> bool:
    """Whether a source that does not exist was meant as a path rather than as a hub name."""
    return source.startswith((".", "/", "~")) or loader_of(Path(source)) is not None or not HUB_NAME.match(source)


def find_files(source: str, split: str) -> LocalFiles | None:
    """The data files that a path, folder or glob stands for; None where nothing of that name is here.

    In a folder, files that name a split (`train-0.parquet`, `test/a.jsonl`) are used only for that split.

    Raises:
        MsifError: a folder without data files, a mixture of kinds, an unknown suffix, only empty files.
    """
    path = Path(source).expanduser()
    if path.is_file():
        paths = [path]
    elif path.is_dir():
        paths = _files_of_split(path, split)
    elif any(character in source for character in "*?["):
        paths = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
        if not paths:
            raise MsifError(f"No file matches '{source}'; check the pattern.")
    else:
        return None
    unknown = [path for path in paths if loader_of(path) is None]
    if unknown:
        raise MsifError(f"Cannot tell the format of '{unknown[0]}'; data files end in {KNOWN}.")
    loaders = sorted({str(loader_of(path)) for path in paths})
    if len(loaders) > 1:
        kinds = " and ".join(loaders)
        raise MsifError(f"'{source}' holds {kinds} files; name one kind with a pattern such as '{source}/*.jsonl'.")
    filled = [path for path in paths if path.stat().st_size > 0]
    if not filled:
        raise MsifError(f"'{source}' is empty; give a file with at least one row.")
    if len(filled) < len(paths):
        log.warning("%d empty files of '%s' are left out", len(paths) - len(filled), source)
    return LocalFiles(loaders[0], tuple(path.absolute() for path in filled))


def _files_of_split(folder: Path, split: str) -> list[Path]:
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [name for name in names if not any(part.startswith((".", "__")) for part in name.parts)]
    names = [name for name in names if loader_of(name) is not None]
    if not names:
        raise MsifError(f"Folder '{folder}' holds no data files; they end in {KNOWN}.")
    splits = {name: _split_of(name) for name in names}
    if any(splits.values()):
        names = [name for name in names if splits[name] == split]
        if not names:
            there = ", ".join(sorted({name for name in splits.values() if name}))
            raise MsifError(f"Folder '{folder}' has no files of split '{split}'; its splits are {there}.")
    return [folder / name for name in names]


def _split_of(name: Path) -> str | None:
    words = re.split(r"[^a-z]+", str(name).lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def open_text(path: Path) -> IO[str]:
    """A text file that may be compressed."""
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig")


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file, or of a JSON file that holds one list of objects or one object.

    Raises:
        MsifError: names the first line that does not parse.
    """
    with open_text(path) as lines:
        head = next((line for line in lines if line.strip()), "").strip()
        if head.startswith("[") or head == "{":  # one document, not JSON Lines
            lines.seek(0)
            try:
                rows = json.load(lines)
            except json.JSONDecodeError as fault:
                raise MsifError(f"Line {fault.lineno} of '{path}' is not valid JSON ({fault.msg}); mend it.") from None
            yield from rows if isinstance(rows, list) else [rows]
            return
        lines.seek(0)
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as fault:
                raise MsifError(
                    f"Line {number} of '{path}' is not valid JSON ({fault.msg}); mend it or delete it."
                ) from None
            if not isinstance(row, dict):
                raise MsifError(
                    f"Line {number} of '{path}' is not a JSON object; write each row as {{\"field\": value, ...}}."
                )
            yield row


def explain_failure(files: LocalFiles, error: BaseException) -> MsifError:
    """Why `datasets` could not read these files, as one sentence; text and JSON are read again to find the place."""
    for path in files.paths:
        try:
            if files.loader == "json":
                rows: Iterator[Any] = json_rows(path)
                if deque(rows, maxlen=1) == deque():
                    return MsifError(f"'{path}' is empty; give a file with at least one row.")
            elif files.loader in ("text", "csv"):
                with open_text(path) as lines:
                    deque(lines, maxlen=0)
        except MsifError as fault:
            return fault
        except UnicodeDecodeError:
            return MsifError(f"'{path}' is not UTF-8 text; convert it, for instance with iconv.")
        except (OSError, EOFError) as fault:
            return MsifError(f"'{path}' cannot be read ({first_line(fault)}); check that the file is complete.")
    while error.__cause__ is not None:  # `datasets` wraps the reader's own message
        error = error.__cause__
    names = f"'{files.paths[0]}'" + (f" and {len(files.paths) - 1} more files" if len(files.paths) > 1 else "")
    return MsifError(f"Cannot read {names} as {files.loader} ({first_line(error)}); check the format.")


def first_line(error: BaseException) -> str:
    """What an exception says, short enough for a sentence."""
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(". ") if lines else type(error).__name__)[:200]
