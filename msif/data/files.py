"""Where a corpus lies: which files a path, folder or pattern stands for."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from msif.data.compression import is_compressed, unpacked
from msif.data.json_rows import shape_of
from msif.data.splits import files_of_split, listed
from msif.errors import MsifError

log = logging.getLogger(__name__)

# File suffix -> how its rows are read; each but Parquet may be compressed.
KINDS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    **{".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".txt": "text"},
}
KNOWN = ".jsonl, .json, .csv, .tsv, .txt (each also .gz, .zst, .bz2 or .xz) and .parquet"
HUB_NAME = re.compile(r"^(?P<name>[\w-][\w.-]*(/[\w-][\w.-]*)?)(:(?P<config>[\w.-]+))?$")
# What lies beside data and holds none.
NO_DATA = re.compile(
    r"(readme|licen[cs]e|notice|copying|citation|changelog|authors|requirements|robots)"
    r"([._-](?!(jsonl?|ndjson|csv|tsv|parquet)$)[\w-]+)*"
    r"|(md5|sha\d+|check)_?sums?(\.txt)?|.*\.(lock|md5|sha\d+|crc|sfv)|_(success|metadata|common_metadata)",
    re.IGNORECASE,
)
# Objects of these names tell of the data, also where they go over one line.
DESCRIPTION = re.compile(
    r"(dataset_infos?|dataset_dict|state|croissant[\w.-]*|metadata|manifest|stats|statistics|config|schema|index)\.json",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class LocalFiles:
    """Files of one kind, in reading order."""

    kind: str
    paths: tuple[Path, ...]

    def state(self) -> str:
        """A name for the files as they lie on disk now.

        Modification times alone do not do: `cp -p` and `tar` carry them over to other content. Size and inode change
        time tell such files apart.
        """
        stats = [(str(path), path.stat()) for path in self.paths]
        parts = [(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats]
        return blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def kind_of(path: Path) -> str | None:
    """How a file is read, by its suffix; None where the suffix is unknown."""
    kind = KINDS.get(unpacked(path).suffix.lower())
    return None if kind == "parquet" and is_compressed(path) else kind


def looks_local(source: str) -> bool:
    """Whether a source that does not exist was meant as a path rather than as a hub name."""
    return source.startswith((".", "/", "~")) or kind_of(Path(source)) is not None or not HUB_NAME.match(source)


def find_files(source: str, split: str | None) -> LocalFiles | None:
    """The data files that a path, folder or glob stands for; None where nothing of that name is here.

    What describes data is passed over, and what else is left out is said.

    Raises:
        MsifError: no data files, a mixture of kinds, an unknown suffix, only empty files, no file of a split.
    """
    path = Path(source).expanduser()
    if path.is_file():
        paths = [path]
    elif path.is_dir():
        paths = _in_folder(path, split)
    elif any(character in source for character in "*?["):
        paths = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
        if not paths:
            raise MsifError(f"No file matches '{source}'; check the pattern.")
        paths = _data_files(paths, source) or paths
    else:
        return None
    if split not in (None, "train") and not path.is_dir():
        log.warning("'%s' names files, of which all are read: --split %s is for folders", source, split)
    unknown = next((path for path in paths if kind_of(path) is None), None)
    if unknown:
        raise MsifError(f"Cannot tell the format of '{unknown}'; {_rename(unknown)}.")
    kinds = sorted({str(kind_of(path)) for path in paths})
    if len(kinds) > 1:
        first = paths[0]
        pattern = first.parent / ("*" + unpacked(first).suffix + (first.suffix if is_compressed(first) else ""))
        raise MsifError(
            f"'{source}' holds {' and '.join(kinds)} files; name one kind with a pattern such as '{pattern}'."
        )
    filled = [path for path in paths if path.stat().st_size > 0]
    if not filled:
        raise MsifError(f"'{source}' is empty; give a file with at least one row.")
    if len(filled) < len(paths):
        empty = [path for path in paths if path not in filled]
        log.warning("of '%s' %s hold nothing, and are left out", source, listed(empty))
    return LocalFiles(kinds[0], tuple(path.absolute() for path in filled))


def _rename(path: Path) -> str:
    if is_compressed(path) and not unpacked(path).suffix:
        return f"say in its name what is packed there, such as '{path.stem}.jsonl{path.suffix}'"
    return f"data files end in {KNOWN}"


def _in_folder(folder: Path, split: str | None) -> list[Path]:
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [name for name in names if not any(part.startswith((".", "__")) for part in name.parts)]
    paths = _data_files([folder / name for name in names], str(folder))
    packed = next((folder / name for name in names if is_compressed(name)), None)
    if not paths and packed:
        raise MsifError(f"Cannot tell the format of '{packed}'; {_rename(packed)}.")
    if not paths:
        raise MsifError(f"Folder '{folder}' holds no data files; they end in {KNOWN}.")
    return [folder / name for name in files_of_split([path.relative_to(folder) for path in paths], split, str(folder))]


def _data_files(paths: Sequence[Path], source: str) -> list[Path]:
    """Those of several files that hold rows."""
    paths = [path for path in paths if not NO_DATA.fullmatch(path.name)]
    known = [path for path in paths if kind_of(path) is not None]
    rows = [path for path in known if not (len(known) > 1 and _describes(path))] or known
    kept = set(rows)
    left_out = [path for path in paths if path not in kept and not DESCRIPTION.fullmatch(path.name)]
    if rows and left_out:
        log.warning("of '%s' %s hold no rows that can be read, and are left out", source, listed(left_out))
    return rows


def _describes(path: Path) -> bool:
    """Whether a file beside others is one JSON object that tells of the data, and no row of it."""
    if unpacked(path).suffix.lower() != ".json":
        return False
    shape = shape_of(path)
    return shape == "object" or (shape == "line" and DESCRIPTION.fullmatch(path.name) is not None)
