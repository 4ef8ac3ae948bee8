"""The versions that a result depends on."""

from __future__ import annotations

from functools import cache
from importlib import metadata

import torch


@cache
def version(name: str) -> str:
    """Read once: it takes a while, and a run asks for it several times."""
    return metadata.version(name)


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("msif", "torch", "transformers")} | {"cuda": str(torch.version.cuda)}
