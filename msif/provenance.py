"""The versions that a result depends on."""

from __future__ import annotations

from importlib.metadata import version

import torch


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("msif", "torch", "transformers")} | {"cuda": str(torch.version.cuda)}
