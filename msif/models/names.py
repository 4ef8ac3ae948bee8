"""What the names of modules and parameters tell."""

from __future__ import annotations


def in_attention(name: str) -> bool:
    """Whether a module lies within an attention module, by the names on its path."""
    return any("attn" in part or "attention" in part for part in name.lower().split(".")[:-1])


def layer_of(name: str) -> int | None:
    """The number of the layer, the first on the path: "layers.3.mlp" -> 3."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)
