"""The configurations of the tiny random models: one entry per architecture or per trait worth a model of its own.

Owns: shapes, config.json fields and GGUF keys. Must not know: weights, files, or Sixfold itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tiny:
    """One tiny model. ``config`` holds what goes into config.json beyond the common shape fields."""

    architecture: str  # the class name in config.json
    config: Mapping[str, Any]
    family: str  # of tests.tiny_tokenizer
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    intermediate: int = 96
    layers: int = 3
    vocab: int = 320
    context: int = 256
    tied: bool = False
    bias: bool = False  # on Q, K and V
    qk_norm: bool = False
    gguf: Mapping[str, Any] = field(default_factory=dict)  # extra GGUF keys, without the architecture's prefix
    gguf_architecture: str = ""  # empty: has no faithful GGUF form

    @property
    def gemma(self) -> bool:
        return self.architecture.startswith("Gemma3")


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
_QWEN3 = {"model_type": "qwen3", "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False}
_GEMMA3 = {"model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6}
_GEMMA3_REAL = {
    **_GEMMA3,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "sliding_window": 8,
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
_GEMMA3_GGUF = {"rope.freq_base": 1e6, "attention.sliding_window": 8}

KINDS: Mapping[str, Tiny] = {
    "llama": Tiny("LlamaForCausalLM", {**_LLAMA, "rope_theta": 10000.0}, "llama", gguf_architecture="llama"),
    "llama3": Tiny(
        "LlamaForCausalLM",
        {**_LLAMA, "rope_theta": 500000.0, "rope_scaling": _LLAMA3_ROPE, "head_dim": 16},
        "llama",
        tied=True,
        gguf_architecture="llama",
    ),
    "mistral": Tiny(  # head_dim is not hidden / heads, as in Mistral Nemo
        "MistralForCausalLM",
        {**_LLAMA, "model_type": "mistral", "rope_theta": 1e6, "sliding_window": None, "head_dim": 32},
        "plain",
        head_dim=32,
        intermediate=128,
        gguf_architecture="llama",
    ),
    "qwen2": Tiny(  # names a window that use_sliding_window=false switches off, as the real files do
        "Qwen2ForCausalLM",
        {
            **_LLAMA,
            "model_type": "qwen2",
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "use_sliding_window": False,
            "sliding_window": 32,
            "max_window_layers": 2,
        },
        "qwen",
        tied=True,
        bias=True,
        gguf_architecture="qwen2",
    ),
    "qwen3": Tiny(  # config.json in the layout of transformers 5
        "Qwen3ForCausalLM",
        {**_QWEN3, "head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        "qwen",
        head_dim=32,
        intermediate=128,
        qk_norm=True,
        gguf_architecture="qwen3",
    ),
    "gemma3": Tiny(
        "Gemma3ForCausalLM",
        {**_GEMMA3_REAL, "head_dim": 32, "query_pre_attn_scalar": 32},
        "gemma",
        head_dim=32,
        intermediate=128,
        layers=7,
        tied=True,
        qk_norm=True,
        gguf=_GEMMA3_GGUF,
        gguf_architecture="gemma3",
    ),
    "gemma3-scaled": Tiny(  # what larger Gemmas differ in: attention scale, linear rope scaling, explicit layer kinds
        "Gemma3ForCausalLM",
        {
            **_GEMMA3,
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        "gemma",
        kv_heads=1,
        head_dim=32,
        layers=4,
        tied=True,
        qk_norm=True,
    ),
    "llama-wide": Tiny(  # rows of whole 256-value super-blocks, for K-quants
        "LlamaForCausalLM",
        {**_LLAMA, "rope_theta": 10000.0},
        "llama",
        hidden=256,
        heads=8,
        head_dim=32,
        intermediate=512,
        layers=2,
        gguf_architecture="llama",
    ),
    "gemma3-wide": Tiny(
        "Gemma3ForCausalLM",
        {**_GEMMA3_REAL, "head_dim": 64, "query_pre_attn_scalar": 64},
        "gemma",
        hidden=256,
        head_dim=64,
        kv_heads=1,
        intermediate=512,
        layers=6,
        tied=True,
        qk_norm=True,
        gguf=_GEMMA3_GGUF,
        gguf_architecture="gemma3",
    ),
}
