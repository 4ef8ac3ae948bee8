"""Tiny random configurations of the architectures that the layout and selection tests run on."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_NEOX = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 50}
_NEOX = {**_NEOX, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GQA = {**_NEOX, "num_key_value_heads": 2}
_WIDE = {**_GQA, "head_dim": 12}  # H·d differs from the hidden size
_GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 32, "vocab_size": 50}
_GPT2 = {**_GPT2, "bos_token_id": 1, "eos_token_id": 2}
_FALCON = {**_NEOX, "bias": True, "alibi": False}
_EXPERTS = {"num_experts_per_tok": 1, "moe_intermediate_size": 16}

# name -> (model type, settings)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", {"hidden_size": 32, "n_head": 4, "n_layer": 2, "vocab_size": 50}),
    "codegen": ("codegen", {**_GPT2, "n_head": 8, "n_embd": 64, "rotary_dim": 4}),
    "biogpt": ("biogpt", _NEOX),
    "cohere": ("cohere", _GQA),
    "ctrl": ("ctrl", {"n_embd": 32, "n_head": 4, "n_layer": 2, "dff": 48, "vocab_size": 50, "n_positions": 32}),
    "dbrx": (
        "dbrx",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 32,
            "vocab_size": 50,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 2, "moe_top_k": 1, "hidden_size": 32},
        },
    ),
    "falcon (multi-head)": ("falcon", {**_FALCON, "new_decoder_architecture": False, "multi_query": False}),
    "falcon (multi-query)": ("falcon", {**_FALCON, "new_decoder_architecture": False, "multi_query": True}),
    "falcon (new decoder)": ("falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon (alibi)": ("falcon", {**_FALCON, "alibi": True, "new_decoder_architecture": False, "multi_query": False}),
    "gemma": ("gemma", _WIDE),
    "gemma2": ("gemma2", _WIDE),
    "gemma3": ("gemma3_text", _WIDE),
    "glm4": ("glm4", {**_WIDE, "head_dim": 8}),
    "gpt2": ("gpt2", _GPT2),
    "gpt_bigcode (multi-head)": ("gpt_bigcode", {**_GPT2, "multi_query": False}),
    "gpt_bigcode (multi-query)": ("gpt_bigcode", {**_GPT2, "multi_query": True}),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_heads": 4,
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "vocab_size": 50,
            "max_position_embeddings": 32,
        },
    ),
    "gpt_neox": ("gpt_neox", _NEOX),
    "gpt_neox_japanese": ("gpt_neox_japanese", {**_NEOX, "intermediate_multiple_size": 2}),
    "gpt_oss": ("gpt_oss", {**_WIDE, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "gptj": ("gptj", {**_GPT2, "rotary_dim": 4}),
    "granite": ("granite", _GQA),
    "llama": ("llama", {**_WIDE, "attention_bias": True}),
    "minimax": (
        "minimax",
        {**_GQA, "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2, "block_size": 8},
    ),
    "mistral": ("mistral", _WIDE),
    "mixtral": ("mixtral", {**_GQA, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 32, "vocab_size": 50}),
    "nemotron": ("nemotron", _WIDE | {"head_dim": 8}),
    "olmo": ("olmo", _GQA),
    "olmo2": ("olmo2", _GQA),
    "olmo3": ("olmo3", _GQA),
    "olmoe": ("olmoe", {**_GQA, "num_experts": 2, "num_experts_per_tok": 1}),
    "openai-gpt": ("openai-gpt", _GPT2),
    "opt": ("opt", {**_NEOX, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "persimmon": ("persimmon", _NEOX),
    "phi": ("phi", {**_GQA, "qk_layernorm": True}),
    "phi3": ("phi3", _GQA),
    "qwen2": ("qwen2", _GQA),
    "qwen2_moe": ("qwen2_moe", {**_GQA, **_EXPERTS, "num_experts": 2, "shared_expert_intermediate_size": 16}),
    "qwen3": ("qwen3", _WIDE),
    "qwen3_moe": ("qwen3_moe", {**_WIDE, **_EXPERTS, "num_experts": 2}),
    "smollm3": ("smollm3", _GQA),
    "stablelm": ("stablelm", {**_GQA, "use_qkv_bias": True, "qk_layernorm": True}),
    "starcoder2": ("starcoder2", _GQA),
    "xglm": ("xglm", {"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 48, "vocab_size": 50}),
}


def tiny_config(architecture: str, **changes: Any) -> Any:
    model_type, settings = ARCHITECTURES[architecture]
    return AutoConfig.for_model(model_type, **{**settings, **changes})


def tiny_model(architecture: str, attention: str = "eager", **changes: Any) -> PreTrainedModel:
    """A language model of an architecture with random weights (seed 0), in eval mode."""
    torch.manual_seed(0)
    config = tiny_config(architecture, **changes)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32).eval()
