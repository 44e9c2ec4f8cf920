"""The parts that decoders of this family share: grouped-query attention with rope, and a gated feed-forward.

Owns: the wiring inside a block. Must not know: norms around the blocks and which options a model uses; that is each
architecture's own file.
"""

from __future__ import annotations

from sixfold.models import graph
from sixfold.models.graph import Node
from sixfold.models.network import Hyperparameters
from sixfold.models.rope import split_pairs
from sixfold.models.source import Source


def attention(
    source: Source,
    hyper: Hyperparameters,
    layer: int,
    x: Node,
    *,
    scale: float,
    window: int = 0,
    table: int = 0,
    head_norms: bool = False,
    norm_offset: float = 0.0,
    interleaved: bool = False,
) -> Node:
    """Attention of the normed input ``x``, output projection included. Biases are used where the file has them.

    ``interleaved``: the file stores rope pairs side by side; rows are put in halves order, which changes no result.
    """
    block = f"blk.{layer}"

    def project(part: str, heads: int) -> Node:
        order = split_pairs(heads, hyper.head_size) if interleaved and part != "v" else None
        weight = source.use(f"{block}.attn_{part}.weight", row_order=order)
        return graph.linear(x, weight, source.optional(f"{block}.attn_{part}.bias", row_order=order))

    def rotate(node: Node, part: str) -> Node:
        if head_norms:
            weight = source.use(f"{block}.attn_{part}_norm.weight", offset=norm_offset)
            node = graph.head_norm(node, weight, hyper.epsilon)
        return graph.rope(node, table)

    q = rotate(project("q", hyper.query_heads), "q")
    k = rotate(project("k", hyper.kv_heads), "k")
    v = project("v", hyper.kv_heads)
    mixed = graph.attention(q, k, v, layer=layer, scale=scale, window=window)
    bias = source.optional(f"{block}.attn_output.bias")
    return graph.linear(mixed, source.use(f"{block}.attn_output.weight"), bias)


def feed_forward(source: Source, layer: int, x: Node, activation: str) -> Node:
    """down(activation(gate(x)) * up(x)) of the normed input ``x`` (Shazeer 2020)."""
    block = f"blk.{layer}"
    gate = graph.activation(graph.linear(x, source.use(f"{block}.ffn_gate.weight")), activation)
    up = graph.linear(x, source.use(f"{block}.ffn_up.weight"))
    return graph.linear(graph.multiply(gate, up), source.use(f"{block}.ffn_down.weight"))


def pre_norm_layers(source: Source, hyper: Hyperparameters, x: Node, *, windows: list[int], **options: bool) -> Node:
    """Layers as Llama has them: x += attention(norm(x)); x += feed_forward(norm(x)), silu, scale 1/sqrt(head_size)."""
    scale = hyper.head_size**-0.5
    for layer in range(hyper.layers):
        normed = graph.rms_norm(x, source.use(f"blk.{layer}.attn_norm.weight"), hyper.epsilon)
        x = graph.add(x, attention(source, hyper, layer, normed, scale=scale, window=windows[layer], **options))
        normed = graph.rms_norm(x, source.use(f"blk.{layer}.ffn_norm.weight"), hyper.epsilon)
        x = graph.add(x, feed_forward(source, layer, normed, "silu"))
    return x


def logits(source: Source, hyper: Hyperparameters, x: Node, norm_offset: float = 0.0) -> Node:
    """The last norm and the vocabulary head, which is the embedding where the file has no head of its own."""
    x = graph.rms_norm(x, source.use("output_norm.weight", offset=norm_offset), hyper.epsilon)
    tied = not source.gguf and source.model.metadata.get("tie_word_embeddings", False)
    if source.has("output.weight"):
        source.use("output.weight")
    return graph.linear(x, "output.weight" if source.has("output.weight") and not tied else "token_embd.weight")


def layer_windows(source: Source, layers: int) -> list[int]:
    """The sliding window of every layer as a Hugging Face configuration says it (0: none); GGUF files of these
    architectures carry none."""
    window = source.model.metadata.get("sliding_window")
    if source.gguf or window is None or source.model.metadata.get("use_sliding_window") is False:
        return [0] * layers
    size = source.integer("window")
    kinds = source.model.metadata.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return [size if kind == "sliding_attention" else 0 for kind in kinds]
    first = int(source.model.metadata.get("max_window_layers") or 0)
    return [size if layer >= first else 0 for layer in range(layers)]
