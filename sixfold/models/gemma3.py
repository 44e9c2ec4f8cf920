"""Gemma 3, text part: five sliding-window layers to one global, GeGLU, norms before and after each block, QK norm,
scaled embeddings (Gemma Team 2025)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sixfold.errors import UnsupportedModelError
from sixfold.models import blocks, graph
from sixfold.models.network import Network
from sixfold.models.rope import frequencies, rope_table
from sixfold.models.source import Source
from sixfold.weights.model_file import ModelFile

HF_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
LOCAL, GLOBAL = 0, 1  # rope tables
LOCAL_BASE = 10000.0
PATTERN = 6  # every sixth layer attends globally
LAYERS_OF_27B = 62  # the one size whose attention scale is not 1/sqrt(head size); GGUF has no key for it


def build(model: ModelFile) -> Network:
    source = Source(model, HF_NAMES)
    for cap in ("final_logit_softcapping", "attn_logit_softcapping"):
        if source.setting(cap, cap):
            raise UnsupportedModelError(f"The model uses {cap}", cause="Gemma 3 has none", remedy="Use Gemma 3 weights")
    head_size = source.integer("head_size", 256)
    hyper = source.hyperparameters(_rope(source, head_size))
    # Hugging Face multiplies by 1 + w; GGUF files hold 1 + w.
    offset = 0.0 if source.gguf else 1.0
    scale = _attention_scale(source, hyper.layers, hyper.hidden, hyper.query_heads, head_size)
    windows = _windows(source, hyper.layers)
    x = graph.embed(source.use("token_embd.weight"), float(np.sqrt(np.float32(hyper.hidden))))
    for layer in range(hyper.layers):

        def norm(node: graph.Node, name: str, layer: int = layer) -> graph.Node:
            return graph.rms_norm(node, source.use(f"blk.{layer}.{name}.weight", offset=offset), hyper.epsilon)

        mixed = blocks.attention(
            source, hyper, layer, norm(x, "attn_norm"), scale=scale, window=windows[layer],
            table=LOCAL if windows[layer] else GLOBAL, head_norms=True, norm_offset=offset,
        )  # fmt: skip
        x = graph.add(x, norm(mixed, "post_attention_norm"))
        x = graph.add(x, norm(blocks.feed_forward(source, layer, norm(x, "ffn_norm"), "gelu_tanh"), "post_ffw_norm"))
    output = blocks.logits(source, hyper, x, offset)
    source.check_all_used()
    return Network("gemma3", hyper, output, source.weights)


def _rope(source: Source, head_size: int) -> tuple[np.ndarray[Any, Any], ...]:
    """(local, global). Only the global table is ever scaled."""
    parameters = source.model.metadata.get("rope_parameters")
    if isinstance(parameters, dict) and "full_attention" in parameters:  # transformers 5: one entry a kind of layer
        full, sliding = parameters["full_attention"], parameters.get("sliding_attention") or {}
        plain = dict(source.model.metadata) | {"rope_parameters": full}
        source = Source(ModelFile(source.model.path, "safetensors", "gemma3", plain, {}, ""))
        local_base = float(sliding.get("rope_theta", LOCAL_BASE))
    else:
        local_base = float(source.setting("rope.local.freq_base", "rope_local_base_freq", LOCAL_BASE))
    return frequencies(head_size, local_base), rope_table(source, head_size, source.number("rope_base", 1e6))


def _windows(source: Source, layers: int) -> list[int]:
    size = source.integer("window")
    kinds = source.model.metadata.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return [size if kind == "sliding_attention" else 0 for kind in kinds]
    pattern = int(source.setting("attention.sliding_window_pattern", "sliding_window_pattern", PATTERN))
    return [size if (layer + 1) % pattern else 0 for layer in range(layers)]


def _attention_scale(source: Source, layers: int, hidden: int, heads: int, head_size: int) -> float:
    scalar = source.model.metadata.get("query_pre_attn_scalar")
    if scalar is None:
        scalar = hidden / heads if source.gguf and layers == LAYERS_OF_27B else head_size
    return 1.0 / math.sqrt(float(scalar))
