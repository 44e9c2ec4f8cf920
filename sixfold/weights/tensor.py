"""One named tensor over memory-mapped bytes, and its values as float32 or as exact integer blocks.

Owns: :class:`Tensor`, :class:`Blocks`, :class:`Levels` and the functions that make and check them. Must not know: file
formats or what a tensor is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sixfold.errors import ModelFileError, UnsupportedModelError
from sixfold.weights.quants import FLOATS, FORMATS, BlockFormat, Bytes, Floats, block_size

CHUNK = 1 << 17  # weights decoded at a time, so that temporaries stay in the cache


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor as it is in the file, zero copy.

    ``shape`` is in numpy order: (out features, in features) for a matrix. ``data`` is a read-only uint8 view
    [rows, bytes per row], where rows is the product of all dimensions but the last (1 for a vector).
    """

    name: str
    type: str
    shape: tuple[int, ...]
    data: Bytes = field(repr=False)

    def dequantize(self) -> Floats:
        """A new float32 array of ``shape``: the values the type's definition gives, bit for bit."""
        if self.type in FLOATS:
            return _floats(self.type, self.data).reshape(self.shape)
        format = FORMATS[self.type]
        out = np.empty((self.data.size // format.bytes, format.weights), np.float32)
        for part, blocks in _chunks(self.data, format):
            q, scale, minimum = _decode(blocks, format)
            if format.zero:  # subtracted before scaling, so that even a zero has the sign it should have
                q -= format.zero
            signed = q.view(np.int8) if format.signed or format.zero else q
            groups = out[part].reshape(*scale.shape, format.group)
            with np.errstate(invalid="ignore", over="ignore"):
                np.multiply(signed.reshape(groups.shape), scale[..., None], out=groups, dtype=np.float32)
                if format.minimum and not format.zero:
                    groups -= minimum[..., None]
        return out.reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Blocks:
    """A quantised matrix in its exact integer form: ``w = scale * q - minimum`` in float32, block by block of a row."""

    q: npt.NDArray[np.uint8] | npt.NDArray[np.int8]  # [rows, cols]
    scale: Floats  # [rows, cols // block]
    minimum: Floats | None  # [rows, cols // block], the value subtracted; None for a symmetric type
    block: int  # 16 or 32
    bits: int  # 4: q is uint8 in 0..15; 8: q is int8


def split_blocks(tensor: Tensor) -> Blocks:
    """The integers and scales of a quantised tensor.

    Raises :class:`UnsupportedModelError` for a float tensor, which has none.
    """
    if tensor.type not in FORMATS:
        raise UnsupportedModelError(
            f"Tensor {tensor.name!r} has no blocks", cause=f"its type {tensor.type} is not quantised",
            remedy="Use its dequantize() instead",
        )  # fmt: skip
    format = FORMATS[tensor.type]
    rows = tensor.data.shape[0]
    blocks = tensor.data.size // format.bytes
    q = np.empty((blocks, format.weights), np.uint8)
    scale = np.empty((blocks, format.weights // format.group), np.float32)
    minimum = np.empty_like(scale if format.minimum else scale[:0])
    with np.errstate(invalid="ignore", over="ignore"):
        for part, chunk in _chunks(tensor.data, format):
            format.decode(chunk, q[part], scale[part], minimum[part])
        if format.zero:
            np.multiply(scale, np.float32(format.zero), out=minimum)
    values = q.reshape(rows, -1)
    return Blocks(
        q=values if format.nibble else values.view(np.int8),
        scale=scale.reshape(rows, -1),
        minimum=minimum.reshape(rows, -1) if format.minimum else None,
        block=format.group,
        bits=4 if format.nibble else 8,
    )


@dataclass(frozen=True, eq=False)
class Levels:
    """The scales of a K-quant as they are stored: group g of block b has the scale ``half[b] * scale[g]``."""

    half: npt.NDArray[np.float16]  # [rows, blocks of 256]
    scale: npt.NDArray[np.uint8] | npt.NDArray[np.int8]  # [rows, groups]
    minimum_half: npt.NDArray[np.float16] | None
    minimum: npt.NDArray[np.uint8] | None


def split_levels(tensor: Tensor) -> Levels:
    """The two levels of scales of a tensor whose type has them."""
    format = FORMATS[tensor.type]
    assert format.levels is not None
    rows, blocks = tensor.data.shape[0], tensor.data.reshape(-1, format.bytes)
    scale, minimum = format.levels(blocks)
    halves = [
        np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").reshape(rows, -1) for at in format.halves
    ]  # fmt: skip
    return Levels(
        half=halves[0],
        scale=scale.reshape(rows, -1),
        minimum_half=None if minimum is None else halves[1],
        minimum=None if minimum is None else minimum.reshape(rows, -1),
    )


def check_finite(tensor: Tensor) -> None:
    """Raises :class:`ModelFileError` when a value (float types) or a scale (quantised types) is infinite or NaN."""
    if tensor.type in FLOATS:
        words = tensor.data.reshape(-1).view("<u4" if tensor.type == "F32" else "<u2")
        exponent = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}[tensor.type]
        finite = all(
            ((words[i : i + CHUNK] & exponent) != exponent).all() for i in range(0, len(words), CHUNK)
        )  # an exponent of all ones
        found = "a value"
    else:
        format = FORMATS[tensor.type]
        halves = [tensor.data.reshape(-1, format.bytes)[:, at : at + 2] for at in format.halves]
        finite = all(((half[:, 1] & 0x7C) != 0x7C).all() for half in halves)
        found = "a scale"
    if not finite:
        raise ModelFileError(
            f"Tensor {tensor.name!r} ({tensor.type}) holds {found} that is infinite or not a number",
            cause="the file is damaged or its conversion went wrong",
            remedy="Download it again, or convert it again from the original weights",
        )


def row_bytes(type: str, cols: int) -> int | None:
    """Bytes of a row of ``cols`` values; None when the type's blocks do not divide it."""
    values, size = block_size(type)
    return cols // values * size if cols % values == 0 else None


def _floats(type: str, data: Bytes) -> Floats:
    if type == "F32":
        return data.view("<f4").astype(np.float32)
    if type == "F16":
        with np.errstate(invalid="ignore"):
            return data.view("<f2").astype(np.float32)
    wide = data.view("<u2").astype(np.uint32)  # bfloat16 is the upper half of a float32
    wide <<= 16
    return wide.view(np.float32)


def _chunks(data: Bytes, format: BlockFormat) -> Iterator[tuple[slice, Bytes]]:
    blocks = data.reshape(-1, format.bytes)
    step = CHUNK // format.weights
    for start in range(0, len(blocks), step):
        part = slice(start, start + step)
        yield part, blocks[part]


def _decode(blocks: Bytes, format: BlockFormat) -> tuple[Bytes, Floats, Floats]:
    q = np.empty((len(blocks), format.weights), np.uint8)
    scale = np.empty((len(blocks), format.weights // format.group), np.float32)
    minimum = np.empty_like(scale)
    with np.errstate(invalid="ignore", over="ignore"):
        format.decode(blocks, q, scale, minimum)
    return q, scale, minimum
