"""Which output rows of a q/k/v projection belong to which head: row layouts, and a registry of architectures.

The query, key and value weights of every head are parameter blocks of their own. A *layout* is a function
``(config, d_out) -> list[Block]`` that says, from the model's configuration, where their rows lie. Throughout:
H query heads, K key/value heads (K ≤ H, K divides H), d rows a head.

Projections q_proj, k_proj, v_proj (or named so) need no entry. A fused projection needs one, see
``docs/adding-an-architecture.md``; without it, it is refused, because a wrong split mixes heads and roles silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from msif.errors import MsifError
from msif.models.blocks import Block
from msif.models.names import in_attention

Layout = Callable[[Any, int], list[Block]]

_FUSED = re.compile(r"qkv|query_key|key_value|c_attn|w_pack|att_proj|(^|_)kv(_|$)", re.IGNORECASE)
_FUSED_IN_ATTENTION = re.compile(r"^in_proj", re.IGNORECASE)  # elsewhere, e.g. in Mamba, in_proj is no q/k/v
_SEPARATE = {
    role: re.compile(rf"^(w_?{role}|{role}_lin|to_{role}|project_{role}|{role}|{word}|{word}_?proj)$", re.IGNORECASE)
    for role, word in (("q", "query"), ("k", "key"), ("v", "value"))
}


def head_counts(config: Any) -> tuple[int, int, int]:
    """(H, K, d) of a transformers configuration.

    Raises:
        MsifError: the configuration does not state a single number for each.
    """
    config = _text(config)
    heads: Any
    kv_heads: Any
    try:
        heads = _decoder_heads(config) or getattr(config, "num_attention_heads", None)
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
    except Exception:  # no such number, or one that varies by layer: each configuration says so in its own way
        heads = kv_heads = size = None
    if not all(isinstance(number, int) and number > 0 for number in (heads, kv_heads, size)):
        raise MsifError(
            f"The configuration of model type {_model_type(config)!r} does not give one number of heads and one head "
            "size for all layers: track each module as one block with --no-split-heads, or register a layout "
            "(docs/adding-an-architecture.md)."
        )
    return heads, kv_heads, size


def _decoder_heads(config: Any) -> Any:
    """Where ``num_attention_heads`` is another name of the encoder's, as in BART: the number of the decoder's."""
    names = ("decoder_attention_heads", "num_decoder_attention_heads")
    return next((found for name in names if (found := getattr(config, name, None))), None)


def interleaved(config: Any, d_out: int) -> list[Block]:
    """For each of H heads: its q, k, v rows (GPT-NeoX)."""
    heads, _, size = head_counts(config)
    return _rows([(role, head) for head in range(heads) for role in "qkv"], size)


def grouped(config: Any, d_out: int, kv_heads: int | None = None) -> list[Block]:
    """For each of K groups: its H/K query heads, then k, then v (new Falcon; one group: multi-query Falcon)."""
    heads, default, size = head_counts(config)
    kv_heads = kv_heads or default
    queries = heads // kv_heads
    return _rows(
        [
            row
            for group in range(kv_heads)
            for row in [*(("q", group * queries + i) for i in range(queries)), ("k", group), ("v", group)]
        ],
        size,
    )


def stacked(config: Any, d_out: int, kv_heads: int | None = None) -> list[Block]:
    """All H query heads, then all K key heads, then all K value heads (GPT-2, Phi-3)."""
    heads, default, size = head_counts(config)
    kv_heads = kv_heads or default
    return _rows([(role, i) for role, n in (("q", heads), ("k", kv_heads), ("v", kv_heads)) for i in range(n)], size)


def sharded(config: Any, d_out: int, shards: int = 4, order: str = "qvk") -> list[Block]:
    """In each of ``shards`` shards: q, v, k of H/shards heads, in this order (CodeGen)."""
    heads, _, size = head_counts(config)
    each = heads // shards
    return _rows([(role, s * each + i) for s in range(shards) for role in order for i in range(each)], size)


def separate(config: Any, d_out: int, role: str) -> list[Block]:
    """The heads of one role in order: H of them for "q", K for "k" and "v" (Llama)."""
    heads, kv_heads, size = head_counts(config)
    return _rows([(role, head) for head in range(heads if role == "q" else kv_heads)], size)


def whole(config: Any, d_out: int) -> list[Block]:
    """One block: the module is not split."""
    return [Block(0, d_out)]


_REGISTRY: dict[str, list[tuple[re.Pattern[str], Layout]]] = {}


def register_layout(model_type: str, pattern: str, layout: Layout) -> None:
    """Say how the rows of a module are split into blocks.

    Args:
        model_type: ``config.model_type`` of the architecture.
        pattern: regular expression, searched for in the module's name.
        layout: ``(config, d_out) -> list[Block]``; ``whole`` treats the module as a single block.

    A later entry goes before an earlier one, and any entry before the generic rule for separate projections.
    """
    _REGISTRY.setdefault(model_type, []).insert(0, (re.compile(pattern), layout))


def blocks_of(config: Any, name: str, d_out: int) -> tuple[Block, ...]:
    """The blocks of a linear map, in row order: per head if it projects to q, k or v, else one for all d_out rows.

    Args:
        config: the model's configuration, or None (a model without one is not split).
        name: the module's name.

    Raises:
        MsifError: it is a fused projection without a registered layout, or its rows do not fit the layout.
    """
    if config is None:
        return (Block(0, d_out),)
    for pattern, layout in _entries(config):
        if pattern.search(name):
            return _checked(layout(config, d_out), config, name, d_out)
    leaf = name.rsplit(".", 1)[-1]
    attention = in_attention(name)
    for role, pattern in _SEPARATE.items():
        # q_proj is unmistakable; names such as key and v mean other things outside attention
        if leaf == f"{role}_proj" or (attention and pattern.match(leaf)):
            return _checked(separate(config, d_out, role), config, name, d_out)
    if _FUSED.search(leaf) or (attention and _FUSED_IN_ATTENTION.match(leaf)):
        raise MsifError(
            f"{name!r} looks like a fused query/key/value projection, and how model type {_model_type(config)!r} "
            "orders its rows is not known: register a layout for it (docs/adding-an-architecture.md; `whole` keeps the "
            "module as one block), or treat every module as a single block with --no-split-heads."
        )
    return (Block(0, d_out),)


def _entries(config: Any) -> list[tuple[re.Pattern[str], Layout]]:
    types = dict.fromkeys((_model_type(config), _model_type(_text(config))))
    return [entry for model_type in types for entry in _REGISTRY.get(model_type, [])]


def _checked(blocks: list[Block], config: Any, name: str, d_out: int) -> tuple[Block, ...]:
    """The blocks, if they are adjacent, of one size, distinct, and cover all rows."""
    starts = [0, *(block.stop for block in blocks[:-1])]
    adjacent = [block.start for block in blocks] == starts and bool(blocks) and blocks[-1].stop == d_out
    if not adjacent or len({b.stop - b.start for b in blocks}) > 1 or len({b.label for b in blocks}) < len(blocks):
        each = blocks[0].stop - blocks[0].start if blocks else 0
        raise MsifError(
            f"The {d_out} output rows of {name!r} do not fit the layout of model type {_model_type(config)!r}, "
            f"{len(blocks)} blocks of {each} rows: register another layout for it (docs/adding-an-architecture.md), or "
            "treat every module as a single block with --no-split-heads."
        )
    return tuple(blocks)


def _rows(order: list[tuple[str, int]], size: int) -> list[Block]:
    return [Block(i * size, (i + 1) * size, role, head) for i, (role, head) in enumerate(order)]


def _text(config: Any) -> Any:
    """The language model's part of a configuration that also describes other parts."""
    get = getattr(config, "get_text_config", None)
    return get() if get is not None else config


def _model_type(config: Any) -> str:
    return str(getattr(config, "model_type", None) or type(config).__name__)


def _falcon(config: Any, d_out: int) -> list[Block]:
    if config.new_decoder_architecture:
        return grouped(config, d_out, kv_heads=config.num_kv_heads)
    return grouped(config, d_out, kv_heads=1) if config.multi_query else interleaved(config, d_out)


def _gpt_bigcode(config: Any, d_out: int) -> list[Block]:
    # without multi-query the heads are interleaved, although the module is called c_attn as in GPT-2
    return stacked(config, d_out, kv_heads=1) if config.multi_query else interleaved(config, d_out)


def _dbrx(config: Any, d_out: int) -> list[Block]:
    return stacked(config, d_out, kv_heads=config.attn_config.kv_n_heads)


register_layout("bloom", r"query_key_value$", interleaved)
register_layout("codegen", r"qkv_proj$", sharded)
register_layout("deepseek_v2", r"self_attn\.(q|q_[ab]|kv_b)_proj$|kv_a_proj_with_mqa$", whole)  # low-rank q and k/v
register_layout("deepseek_v3", r"self_attn\.(q|q_[ab]|kv_b)_proj$|kv_a_proj_with_mqa$", whole)
register_layout("dbrx", r"Wqkv$", _dbrx)
register_layout("falcon", r"query_key_value$", _falcon)
register_layout("gpt2", r"\.attn\.c_attn$", stacked)  # not crossattention.c_attn, which holds k and v only
register_layout("gpt_bigcode", r"\.attn\.c_attn$", _gpt_bigcode)
register_layout("gpt_neox", r"query_key_value$", interleaved)
register_layout("gpt_neox_japanese", r"query_key_value$", interleaved)
register_layout("minimax", r"qkv_proj$", interleaved)  # of its linear attention; the full attention is separate
register_layout("mpt", r"Wqkv$", stacked)
register_layout("openai-gpt", r"\.attn\.c_attn$", stacked)
register_layout("persimmon", r"query_key_value$", interleaved)
register_layout("phi3", r"qkv_proj$", stacked)
