"""What the names of a folder's files say about splits, and when they count."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from msif.data.compression import unpacked
from msif.errors import MsifError

log = logging.getLogger(__name__)

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(WORDS, key=len, reverse=True))})(?![a-z])")
SHARD = re.compile(r"[-_.]\d+-of-\d+.*")  # of the layout of `datasets`, where all before it is the split's name


def files_of_split(names: Sequence[Path], split: str | None, folder: str) -> list[Path]:
    """The files of a folder that are read; the log says which are not.

    With a split asked for, these are the files whose names hold its word, in whatever place; where no file names a
    split, all are `train`. With none, names count only in a layout of splits: every file names one, and some differ in
    nothing else. Then `train` is read, as of a dataset of the hub.

    Raises:
        MsifError: no file of the split; or several splits, none of them `train`, and no word of which.
    """
    exact = {name: _named(name) for name in names}
    if split is not None:
        return _asked(names, split, {name: named and named[1] for name, named in exact.items()}, folder)
    splits_of = defaultdict(set)
    for named in exact.values():
        if named is not None:
            splits_of[named[0]].add(named[1])
    if not any(len(splits) > 1 for splits in splits_of.values()):
        return list(names)
    there = sorted(set().union(*splits_of.values()))
    if None in exact.values():
        others = ", ".join(there)
        log.warning("'%s' has files of splits (%s) and files of none: all are read; --split reads one", folder, others)
        return list(names)
    if "train" not in there:
        raise MsifError(f"'{folder}' has the splits {', '.join(there)}; choose one with --split.")
    kept = [name for name, named in exact.items() if named is not None and named[1] == "train"]
    others = listed([name for name in names if name not in kept])
    log.warning("of '%s' the split train is read, and left out are %s; --split reads another", folder, others)
    return kept


def listed(names: Sequence[Path]) -> str:
    """So many files, with the first names."""
    shown = ", ".join(str(name) for name in names[:5])
    more = ", ..." if len(names) > 5 else ""
    return f"{len(names)} file{'s' * (len(names) != 1)} ({shown}{more})"


def _asked(names: Sequence[Path], split: str, exact: dict[Path, str | None], folder: str) -> list[Path]:
    wanted = WORDS.get(split, split)
    loose = {name: exact[name] if exact[name] == split else _word_in(name) for name in names}
    kept = [name for name in names if loose[name] in (split, wanted)]
    there = sorted({word for word in loose.values() if word})
    if not kept and not there and wanted == "train":
        return list(names)
    if not kept:
        hint = f"its splits are {', '.join(there)}" if there else "no name there holds a split, so leave --split out"
        raise MsifError(f"Folder '{folder}' has no files of split '{split}'; {hint}.")
    left_out = [name for name in names if name not in kept]
    if left_out:
        log.info("of '%s' the split %s is read, and left out are %s", folder, split, listed(left_out))
    return kept


def _named(name: Path) -> tuple[str, str] | None:
    """The split that a file's name holds, after what else it is called."""
    folders = [part.lower() for part in name.parent.parts if part.lower() in WORDS]
    if folders:
        return "", WORDS[folders[-1]]
    stem = unpacked(name).stem.lower()
    base = SHARD.sub("", stem)
    match = WORD.search(base)
    if match is None:
        return None
    before, after = base[: match.start()], base[match.end() :]
    if base != stem and after.startswith("_"):  # train_sft-00000-of-00003
        return before, match[0] + after
    return re.sub(r"[-_.]?\d+", "", f"{before} {after}"), WORDS[match[0]]


def _word_in(name: Path) -> str | None:
    match = WORD.search(str(name).lower())
    return WORDS[match[0]] if match else None
