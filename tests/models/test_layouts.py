"""Each block is the q, k or v of exactly one head: seen in what the attention of real models computes with.

Attention is run in its ``eager`` form, where every architecture computes two batched products, q kᵀ and then p v. A
``TorchFunctionMode`` records their operands while the attention module of layer 0 runs. One block's rows are then
changed, and among all heads of q, k and v only that one may move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, tiny_config, tiny_model
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

from msif.errors import MsifError
from msif.models import layouts
from msif.models.blocks import Block, is_linear, linear_shape
from msif.models.layouts import blocks_of, head_counts, register_layout, whole
from msif.models.names import in_attention

TOKENS = torch.tensor([[3, 7, 11, 13, 17, 19, 23], [29, 31, 37, 41, 43, 47, 5]])  # T = 7 equals no head size or count
PRODUCTS: dict[Any, Callable[..., tuple[Tensor, Tensor]]] = {
    torch.matmul: lambda a, b: (a, b),
    torch.bmm: lambda a, b: (a, b),
    torch.Tensor.matmul: lambda a, b: (a, b),
    torch.Tensor.__matmul__: lambda a, b: (a, b),
    torch.baddbmm: lambda _, a, b, **__: (a, b),
    torch.Tensor.baddbmm: lambda _, batch1, batch2, **__: (batch1, batch2),
}


class Recorder(TorchFunctionMode):
    """Records the operands of batched matrix products while ``active``."""

    def __init__(self) -> None:
        super().__init__()
        self.active, self.products = False, []

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if self.active and function in PRODUCTS:
            a, b = PRODUCTS[function](*args, **{k: v for k, v in (kwargs or {}).items() if k not in ("beta", "alpha")})
            if a.ndim >= 3 and b.ndim >= 3:  # FalconLinear multiplies by its weight with @, too
                self.products.append((a.detach(), b.detach()))
        return function(*args, **(kwargs or {}))


def attention_inputs(model: nn.Module, attention: nn.Module) -> dict[str, Tensor]:
    """q, k, v with which one attention module computes, each (B, heads, T, d); k and v may be repeated to H heads."""
    recorder = Recorder()
    handles = [
        attention.register_forward_pre_hook(lambda *_: setattr(recorder, "active", True)),
        attention.register_forward_hook(lambda *_: setattr(recorder, "active", False)),
    ]
    try:
        with torch.no_grad(), recorder:
            model(TOKENS, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    (q, k), (p, v) = recorder.products[:2]  # MiniMax's linear attention goes on with others
    assert p.shape[-2:] == (TOKENS.shape[1],) * 2, "the second product is not p v"
    size = (TOKENS.shape[0], -1, TOKENS.shape[1])
    return {role: x.reshape(*size, x.shape[-1]) for role, x in (("q", q), ("k", k.transpose(-1, -2)), ("v", v))}


@contextmanager
def changed_rows(module: nn.Module, block: Block) -> Iterator[None]:
    """Within, the rows of one block (weight and bias) are other numbers."""
    saved = [(parameter, parameter.detach().clone()) for parameter in module.parameters()]
    rows = slice(block.start, block.stop)
    with torch.no_grad():
        weight = module.weight if isinstance(module, nn.Linear) else module.weight.T  # Conv1D is transposed
        weight[rows] += torch.randn(weight[rows].shape)
        if module.bias is not None:
            module.bias[rows] += torch.randn(module.bias[rows].shape)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in saved:
                parameter.copy_(value)


def projections(model: nn.Module) -> dict[str, nn.Module]:
    """The linear maps of the first attention module but for its output projection (the one that is not split)."""
    linear = {name: module for name, module in model.named_modules() if is_linear(module) and in_attention(name)}
    first = next(iter(linear)).rsplit(".", 1)[0]
    return {name: module for name, module in linear.items() if name.rsplit(".", 1)[0] == first}


def misplaced(model: nn.Module, blocks: dict[str, tuple[Block, ...]]) -> list[str]:
    """The blocks whose rows are not the q, k or v of their head and of it only, as "module label: what moved"."""
    attention = model.get_submodule(next(iter(blocks)).rsplit(".", 1)[0])
    for norm in ("q_norm", "k_norm"):
        # OLMo normalises q and k over all heads together, after the projection and before the heads are told apart:
        # one head's change rescales the others. Without that norm, q and k are what the projection gave.
        if model.config.model_type in ("olmo2", "olmo3", "olmoe"):
            setattr(attention, norm, nn.Identity())
    before = attention_inputs(model, attention)
    again = attention_inputs(model, attention)
    assert all(torch.equal(before[role], again[role]) for role in "qkv")
    heads = {role: len({b.head for bs in blocks.values() for b in bs if b.role == role}) for role in "qkv"}
    wrong = []
    for name, parts in blocks.items():
        for block in parts:
            with changed_rows(model.get_submodule(name), block):
                after = attention_inputs(model, attention)
            moved = {
                (role, head)
                for role in "qkv"
                for head in range(before[role].shape[1])
                if not torch.equal(before[role][:, head], after[role][:, head])
            }
            # one key/value head serves several query heads, and some models repeat it before the product
            repeats = before[block.role].shape[1] // heads[block.role]
            assert block.head is not None
            expected = {(block.role, block.head * repeats + i) for i in range(repeats)}
            if moved != expected:
                wrong.append(f"{name} {block.label}: {sorted(moved)}")
    return wrong


def split(model: nn.Module) -> dict[str, tuple[Block, ...]]:
    """The split projections of the first attention module."""
    found = {name: blocks_of(model.config, name, linear_shape(m)[0]) for name, m in projections(model).items()}
    return {name: blocks for name, blocks in found.items() if blocks[0].role != "whole"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_block_is_one_head(architecture: str) -> None:
    model = tiny_model(architecture)
    blocks = split(model)
    assert len(blocks) in (1, 3)
    labels = [block.label for parts in blocks.values() for block in parts]
    heads = {role: [int(label[1:]) for label in labels if label[0] == role] for role in "qkv"}
    H = model.config.num_attention_heads
    assert sorted(heads["q"]) == list(range(H)) and sorted(heads["k"]) == sorted(heads["v"])
    assert len(labels) == H + 2 * len(heads["k"])
    assert misplaced(model, blocks) == []


@pytest.mark.parametrize(
    ("architecture", "wrong"),
    [
        ("gpt_neox", layouts.stacked),
        ("bloom", layouts.stacked),
        ("gpt2", layouts.interleaved),
        ("codegen", layouts.stacked),
        ("codegen", lambda config, d_out: layouts.sharded(config, d_out, order="qkv")),
        ("phi3", layouts.grouped),
        ("falcon (new decoder)", lambda config, d_out: layouts.stacked(config, d_out, kv_heads=2)),
        ("gpt_bigcode (multi-head)", layouts.stacked),
    ],
)
def test_a_wrong_layout_is_seen(architecture: str, wrong: layouts.Layout) -> None:
    model = tiny_model(architecture)
    (name,) = split(model)
    d_out, _ = linear_shape(model.get_submodule(name))
    assert misplaced(model, {name: tuple(wrong(model.config, d_out))})


def test_key_value_heads_of_separate_projections_are_seen() -> None:
    model = tiny_model("llama")
    (q, k, v) = split(model)
    blocks = split(model)
    swapped = {q: blocks[q], k: blocks[v], v: blocks[k]}
    assert len(misplaced(model, swapped)) == 4


def test_row_orders() -> None:
    labels = lambda blocks: " ".join(b.label for b in blocks)  # noqa: E731
    config = SimpleNamespace(model_type="x", num_attention_heads=4, num_key_value_heads=2, head_dim=3)
    assert labels(layouts.interleaved(config, 36)) == "q0 k0 v0 q1 k1 v1 q2 k2 v2 q3 k3 v3"
    assert labels(layouts.grouped(config, 24)) == "q0 q1 k0 v0 q2 q3 k1 v1"
    assert labels(layouts.stacked(config, 24)) == "q0 q1 q2 q3 k0 k1 v0 v1"
    assert labels(layouts.sharded(config, 36, shards=2)) == "q0 q1 v0 v1 k0 k1 q2 q3 v2 v3 k2 k3"
    assert labels(layouts.separate(config, 6, "k")) == "k0 k1"
    assert [(b.start, b.stop) for b in layouts.separate(config, 6, "k")] == [(0, 3), (3, 6)]
    assert labels(whole(config, 36)) == "whole"


@pytest.mark.parametrize(
    "name",
    [
        *("attention.query_key_value", "attn.c_attn", "attn.Wqkv", "self_attn.W_pack", "self_attn.qkv_proj"),
        *("attention.wqkv", "attn.att_proj", "attn.in_proj", "attn.to_kv", "self_attn.kv_proj", "attn_qkv"),
    ],
)
def test_an_unknown_fused_projection_is_refused(name: str) -> None:
    config = SimpleNamespace(model_type="unheard-of", num_attention_heads=4, hidden_size=32)
    with pytest.raises(MsifError, match=r"unheard-of.*register a layout.*--no-split-heads"):
        blocks_of(config, f"layers.0.{name}", 96)


@pytest.mark.parametrize(
    "name", ["attention.dense", "self_attn.o_proj", "mlp.gate_up_proj", "mixer.in_proj", "mlp.c_fc", "mlp.key"]
)
def test_other_maps_are_one_block(name: str) -> None:
    config = SimpleNamespace(model_type="unheard-of", num_attention_heads=4, hidden_size=32)
    assert blocks_of(config, f"layers.0.{name}", 96) == (Block(0, 96),)


def test_a_model_without_configuration_is_not_split() -> None:
    assert blocks_of(None, "attention.query_key_value", 96) == (Block(0, 96),)


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MsifError, match=r"100 output rows of 'layers.0.attention.query_key_value' do not fit"):
        blocks_of(tiny_config("gpt_neox"), "layers.0.attention.query_key_value", 100)
    with pytest.raises(MsifError, match="do not fit the layout of model type 'llama', 4 blocks of 12 rows"):
        blocks_of(tiny_config("llama"), "layers.0.self_attn.q_proj", 96)  # e.g. a gate beside the query


def test_heads_must_be_one_number() -> None:
    for numbers in ({"num_attention_heads": [4, 6], "head_dim": 8}, {"hidden_size": 32}, {"num_attention_heads": 4}):
        with pytest.raises(MsifError, match=r"openelm.*--no-split-heads"):
            head_counts(SimpleNamespace(model_type="openelm", **numbers))


def test_registering_a_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "_REGISTRY", {})
    config = SimpleNamespace(model_type="unheard-of", num_attention_heads=2, hidden_size=8)
    register_layout("unheard-of", r"attn\.qkv$", layouts.interleaved)
    assert [b.label for b in blocks_of(config, "h.0.attn.qkv", 24)] == ["q0", "k0", "v0", "q1", "k1", "v1"]
    register_layout("unheard-of", r"attn\.qkv$", whole)  # the later entry goes first
    assert blocks_of(config, "h.0.attn.qkv", 24) == (Block(0, 24),)
    gap = [Block(0, 8, "q", 0), Block(16, 24, "k", 0)]
    register_layout("unheard-of", r"attn\.qkv$", lambda config, d_out: gap)
    with pytest.raises(MsifError, match="do not fit"):
        blocks_of(config, "h.0.attn.qkv", 24)


def test_heads_of_a_decoder_are_its_own_where_its_configuration_is_of_an_encoder_too() -> None:
    """Their ``num_attention_heads`` is another name of the encoder's."""
    numbers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 8, "decoder_attention_heads": 2}
    sizes = {"d_model": 16, "vocab_size": 50, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "pad_token_id": 1}
    for model_type in ("bart", "mbart", "pegasus", "blenderbot", "marian"):
        config = AutoConfig.for_model(model_type, **numbers, **sizes)
        config.is_decoder, config.is_encoder_decoder = True, False
        assert head_counts(config) == (2, 2, 8)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    blocks = {name: parts for name, parts in split(model).items() if ".self_attn." in name}
    assert len(blocks) == 3 and misplaced(model, blocks) == []
