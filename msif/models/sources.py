"""Where a model is: a folder here or a name on the Hugging Face Hub, or one sentence that says why neither."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

from msif.errors import MsifError
from msif.models import adapters

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """A model, or an adapter, as it can be handed to transformers.

    Attributes:
        name: what the user called it.
        path: a folder, or a name on the Hub.
        local: whether it is a folder, which is then never looked for elsewhere.
        revision: the Hub's, where one is asked for.
    """

    name: str
    path: str
    local: bool
    revision: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of every ``from_pretrained``."""
        pinned = {} if self.revision is None or self.local else {"revision": self.revision}
        return {"local_files_only": self.local, "trust_remote_code": False, **pinned}

    @property
    def folder(self) -> Path | None:
        return Path(self.path) if self.local else None


def locate(name: str) -> Source:
    """
    Raises:
        MsifError: neither a model's or adapter's folder nor a name that can be had from the Hub.
    """
    path = Path(name).expanduser()
    looks_local = name.startswith((".", "~", "/")) or (os.sep in name.rstrip("/") and path.parent.is_dir())
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / adapters.CONFIG).is_file():
            give = f"{_checkpoint_in(path)}a folder written by save_pretrained"
            raise MsifError(f"The folder {name!r} has no config.json: give {give}.")
        return Source(name, str(path), True)
    if path.exists():
        raise MsifError(f"{name!r} is a file: give the folder that holds config.json and the weights.")
    if looks_local or not _HUB_NAME.fullmatch(name):
        raise MsifError(f"The model folder {name!r} does not exist: check the path.")
    return _on_hub(name)


def base_source(adapter: adapters.Adapter) -> Source:
    """Where the base model of an adapter is.

    Raises:
        MsifError: not where the adapter says, or it is an adapter itself.
    """
    named = adapter.base()
    try:
        found = locate(named)
    except MsifError as error:
        raise MsifError(
            f"The base model {named!r} of the adapter {adapter.name!r} is neither here nor to be had from the Hugging "
            f"Face Hub: {adapter.mend}."
        ) from error
    if found.folder is not None and adapters.is_adapter(found.folder):
        raise MsifError(
            f"The base model {named!r} of the adapter {adapter.name!r} is an adapter itself: merge it into its own "
            "base and save the result (merge_and_unload, save_pretrained)."
        )
    return Source(named, found.path, found.local, adapter.settings.get("revision"))


def _on_hub(name: str) -> Source:
    # asked first and once, because transformers tries for half a minute before it gives up; a cached model needs none
    cached = {file: try_to_load_from_cache(name, file) for file in ("config.json", adapters.CONFIG)}
    held = {file: Path(path) for file, path in cached.items() if isinstance(path, str)}
    if adapters.CONFIG in held and adapters.is_adapter(held[adapters.CONFIG].parent):
        return Source(name, str(held[adapters.CONFIG].parent), True)
    if "config.json" in held:
        return Source(name, name, False)
    try:
        files = {file.rfilename for file in HfApi().model_info(name, timeout=10).siblings or ()}
        if adapters.CONFIG in files and "config.json" not in files:
            # an adapter is small, and is read as a folder
            return Source(name, snapshot_download(name, ignore_patterns=["*/*", "*.pt", "*.pth"]), True)
    except Exception as error:
        # whether it is a mistyped folder or a hub name cannot be told, so the message speaks of both, and of no
        # connection
        raise MsifError(
            f"There is no model folder {name!r} here, nor could a model of this name be had from the Hugging Face Hub: "
            "check the path or the name, or download the model and give its folder."
        ) from error
    return Source(name, name, False)


def _checkpoint_in(path: Path) -> str:
    """The last checkpoint in a Trainer's output folder, as part of a sentence."""
    found = [folder for folder in path.glob("checkpoint-*") if folder.name.removeprefix("checkpoint-").isdecimal()]
    last = max(found, key=lambda folder: int(folder.name.removeprefix("checkpoint-")), default=None)
    return "" if last is None else f"{str(last)!r}, or another "
