"""GGUF files byte by byte, so that a test can make one that lies, and random blocks of every quantised type.

Owns: the layout of a GGUF file, written out by hand. Must not know: the reader under test.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

U8, BOOL, U32, F32_VALUE, STRING, ARRAY, U64 = 0, 7, 4, 6, 8, 9, 10  # metadata value types
# where in a block of each type the float16 scales and minimums stand
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,),
}  # fmt: skip


@dataclass(frozen=True)
class RawTensor:
    """A tensor as the file describes it: dimensions innermost first, its type's number, its bytes."""

    name: str | bytes = "a"
    dims: tuple[int, ...] = (32,)
    kind: int = 0
    data: bytes = bytes(128)
    offset: int | None = None  # None: right behind the one before, aligned
    dim_count: int | None = None  # None: as many as there are


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A metadata key with its value already in bytes."""
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, elements: Sequence[bytes], count: int | None = None) -> bytes:
    return struct.pack("<IQ", kind, len(elements) if count is None else count) + b"".join(elements)


ARCHITECTURE = pair("general.architecture", STRING, string("llama"))


def build(
    tensors: Sequence[RawTensor] = (RawTensor(),), pairs: Sequence[bytes] = (), *, magic: bytes = b"GGUF",
    version: int = 3, tensor_count: int | None = None, key_count: int | None = None, alignment: int = 32,
) -> bytes:  # fmt: skip
    """A GGUF file with the architecture ``llama``; the counts can be made to lie."""
    pairs = (ARCHITECTURE, *pairs)
    tensor_count = len(tensors) if tensor_count is None else tensor_count
    key_count = len(pairs) if key_count is None else key_count
    head = magic + struct.pack("<IQQ", version, tensor_count, key_count) + b"".join(pairs)
    data = b""
    for tensor in tensors:
        offset = len(data) if tensor.offset is None else tensor.offset
        count = len(tensor.dims) if tensor.dim_count is None else tensor.dim_count
        head += string(tensor.name) + struct.pack(f"<I{len(tensor.dims)}Q", count, *tensor.dims)
        head += struct.pack("<IQ", tensor.kind, offset)
        data += tensor.data + bytes(-len(tensor.data) % alignment)
    return head + bytes(-len(head) % alignment) + data


def random_rows(kind: str, rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """uint8 [rows, bytes per row]: random bits everywhere, random finite values where a block's floats stand."""
    random = np.random.default_rng(seed)
    if kind in ("F32", "F16", "BF16"):
        values = random.normal(size=(rows, cols)).astype(np.float32)
        if kind == "BF16":
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return values.astype(np.dtype("<f4" if kind == "F32" else "<f2")).view(np.uint8)
    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = random.integers(0, 256, (rows * cols // weights, size), dtype=np.uint8)
    for at in HALVES[kind]:
        halves = random.normal(size=len(blocks)).astype("<f2")
        halves[::7] = 6e-8  # the smallest subnormal
        halves[3::11] = 0
        blocks[:, at : at + 2] = halves[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)
