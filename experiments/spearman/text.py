"""The text: training and test lines, from a folder or from the Penn Treebank at a hub."""

from __future__ import annotations

from pathlib import Path

from msif.errors import MsifError

# the hub's own conversion to Parquet of a dataset that is a script
PENN_TREEBANK = ("ptb-text-only/ptb_text_only", "refs/convert/parquet")


def read_text(corpus: str | None, data: str) -> tuple[str, list[str], list[str]]:
    """(name, training lines, test lines).

    Args:
        corpus: "ptb", a folder with ``valid.txt`` or ``train.txt``, and ``test.txt``; None tries the hub's Penn
            Treebank, and where that cannot be had takes ``wikitext2`` in the folder ``data``.

    Raises:
        MsifError: no text is found.
    """
    if corpus == "ptb":
        return ("ptb", *_penn_treebank())
    if corpus is not None:
        return (Path(corpus).name, *_folder(Path(corpus)))
    try:
        return ("ptb", *_penn_treebank())
    except MsifError as error:
        folder = Path(data) / "wikitext2"
        if not folder.is_dir():
            raise MsifError(
                f"{error} There is no {folder} either: give --corpus with a folder of train.txt and test.txt."
            ) from error
        return ("wikitext2", *_folder(folder))


def _folder(folder: Path) -> tuple[list[str], list[str]]:
    training = next((folder / name for name in ("train.txt", "valid.txt") if (folder / name).is_file()), None)
    if training is None or not (folder / "test.txt").is_file():
        raise MsifError(f"{folder} holds no train.txt (or valid.txt) and test.txt: give another --corpus.")
    return _lines(training), _lines(folder / "test.txt")


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _penn_treebank() -> tuple[list[str], list[str]]:
    from datasets import load_dataset

    name, revision = PENN_TREEBANK
    try:
        splits = load_dataset(name, revision=revision)
    except Exception as error:  # of many kinds: no network, no such dataset, offline mode
        raise MsifError(f"the Penn Treebank ({name}) cannot be had from the hub: give --corpus FOLDER.") from error
    return splits["train"]["sentence"], splits["test"]["sentence"]
