"""Writes a GGUF of a Qwen2.5 shape with seeded random weights, for speed at sizes whose weights can not be shipped.

The text such a model writes is noise, but its arithmetic is that of the real one: same shapes, same operators. Norm
weights are one and the others are normal with the deviation that Qwen2 trains from, so activations stay in range.
The vocabulary is borrowed from another GGUF (``--vocabulary``) and padded with unused tokens.

Usage: random_model.py SHAPE OUTPUT --vocabulary FILE [--seed N]      (needs numpy and gguf, which Sixfold depends on)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int = 151_936
    context: int = 32_768
    rope_base: float = 1e6
    deviation: float = 0.02

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


SHAPES = {
    "qwen2.5-0.5b": Shape(hidden=896, layers=24, heads=14, kv_heads=2, intermediate=4864),
    "qwen2.5-1.5b": Shape(hidden=1536, layers=28, heads=12, kv_heads=2, intermediate=8960),
}


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes, outputs first as numpy has them. The output matrix is the embedding's."""
    yield "token_embd.weight", (shape.vocabulary, shape.hidden)
    yield "output_norm.weight", (shape.hidden,)
    kv = shape.kv_heads * shape.head_size
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        yield prefix + "attn_norm.weight", (shape.hidden,)
        for name, outputs in (("attn_q", shape.hidden), ("attn_k", kv), ("attn_v", kv)):
            yield f"{prefix}{name}.weight", (outputs, shape.hidden)
            yield f"{prefix}{name}.bias", (outputs,)
        yield prefix + "attn_output.weight", (shape.hidden, shape.hidden)
        yield prefix + "ffn_norm.weight", (shape.hidden,)
        yield prefix + "ffn_gate.weight", (shape.intermediate, shape.hidden)
        yield prefix + "ffn_up.weight", (shape.intermediate, shape.hidden)
        yield prefix + "ffn_down.weight", (shape.hidden, shape.intermediate)


def values(name: str, size: tuple[int, ...], shape: Shape, seed: int) -> np.ndarray[Any, Any]:
    """A tensor's values depend on the seed and its name only. Matrices are float16, vectors float32."""
    if name.endswith("norm.weight"):
        return np.ones(size, np.float32)
    draw = np.random.default_rng([seed, *name.encode()])
    drawn = draw.standard_normal(size, np.float32) * np.float32(shape.deviation)
    return drawn if len(size) == 1 else drawn.astype(np.float16)


def write(shape: Shape, name: str, output: Path, vocabulary: Path, seed: int) -> None:
    writer = gguf.GGUFWriter(output, "qwen2", use_temp_file=True)  # large shapes need not fit into memory
    writer.add_name(f"{name} with random weights, seed {seed}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-6)
    _borrow_vocabulary(writer, vocabulary, shape.vocabulary)
    for tensor, size in tensors(shape):
        writer.add_tensor(tensor, values(tensor, size, shape, seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _borrow_vocabulary(writer: gguf.GGUFWriter, source: Path, size: int) -> None:
    fields = {name: field.contents() for name, field in gguf.GGUFReader(source).fields.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    unused = size - len(tokens)
    if unused < 0:
        raise SystemExit(f"{source} has {len(tokens)} tokens, more than {size}")
    writer.add_tokenizer_model(fields["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(fields["tokenizer.ggml.pre"])
    writer.add_token_list(tokens + [f"[PAD{i}]" for i in range(unused)])
    writer.add_token_types(fields["tokenizer.ggml.token_type"] + [int(gguf.TokenType.UNUSED)] * unused)
    writer.add_token_merges(fields["tokenizer.ggml.merges"])
    writer.add_bos_token_id(fields["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(fields["tokenizer.ggml.eos_token_id"])
    writer.add_add_bos_token(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("output", type=Path)
    parser.add_argument("--vocabulary", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(SHAPES[options.shape], options.shape, options.output, options.vocabulary, options.seed)


if __name__ == "__main__":
    main()
