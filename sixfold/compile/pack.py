"""Lays weights out as the kernels read them.

Owns: the byte layout of tiles. Must not know: files, operators.

A matrix [N outputs, K inputs] is cut into tiles of 16 outputs; N is padded to 16 and K to 32 with zeros. A tile is a
run of blocks of 32 inputs:

    | scales [parts][16] | minimums [parts][16], if any | values |        parts = 32 / block

Values lie so that a 256-bit register holds 8 outputs by 4 inputs. For int8: [8 groups of 4 inputs][2 halves of 8
outputs][8 outputs][4 inputs] bytes. For int4 a byte holds inputs k (low) and k + 16 (high): [4 groups][2][8][4] bytes.
Float tiles are [K][16].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from sixfold.compile.formats import EXPLICIT_MINIMUM, FORMATS, INT4, Format
from sixfold.models.network import Weight
from sixfold.weights.tensor import Tensor, check_finite, split_blocks

TILE = 16  # outputs
BLOCK = 32  # inputs
CHUNK_VALUES = 1 << 22  # weights packed at a time, so that a large vocabulary needs little extra memory

Bytes = npt.NDArray[np.uint8]


def format_of(weight: Weight) -> Format:
    return FORMATS[weight.tensor.type]


def pack(weight: Weight) -> Iterator[Bytes]:
    """The packed bytes of a matrix, in pieces. Raises ModelFileError if a value or scale is not finite."""
    check_finite(weight.tensor)
    rows, columns = weight.shape
    step = max(TILE, CHUNK_VALUES // columns // TILE * TILE)
    for begin in range(0, rows, step):
        yield pack_tiles(weight.rows(begin, min(begin + step, rows)))


def pack_tiles(tensor: Tensor) -> Bytes:
    """The tiles of some rows of a matrix, flat."""
    format = FORMATS[tensor.type]
    return _pack_blocks(tensor, format) if format.quantised else _pack_floats(tensor, format)


def _pack_floats(tensor: Tensor, format: Format) -> Bytes:
    width = {0: "<u4", 1: "<u2", 2: "<u2"}[format.values]
    values = _padded(tensor.data.view(width).reshape(tensor.shape), BLOCK)
    tiles = values.reshape(-1, TILE, values.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(tiles).view(np.uint8).reshape(-1)


def _pack_blocks(tensor: Tensor, format: Format) -> Bytes:
    blocks = split_blocks(tensor)
    q = _padded(blocks.q.view(np.uint8), BLOCK)
    tiles, count = q.shape[0] // TILE, q.shape[1] // BLOCK
    if format.values == INT4:
        # axes: tile, half of 8 outputs, output, block, low or high nibble, group, input
        nibbles = q.reshape(tiles, 2, 8, count, 2, 4, 4)
        values = nibbles[:, :, :, :, 0] | (nibbles[:, :, :, :, 1] << 4)
    else:
        values = q.reshape(tiles, 2, 8, count, 8, 4)  # the same without nibbles
    parts = [_scales(blocks.scale, format, tiles, count)]
    if format.minimum == EXPLICIT_MINIMUM:
        assert blocks.minimum is not None
        parts.append(_scales(blocks.minimum, format, tiles, count))
    parts.append(values.transpose(0, 3, 4, 1, 2, 5).reshape(tiles, count, -1))
    return np.concatenate(parts, axis=2).reshape(-1)


def _scales(values: npt.NDArray[np.float32], format: Format, tiles: int, count: int) -> Bytes:
    parts = BLOCK // format.block
    padded = _padded(values, parts)
    if format.scale_bytes == 2:
        padded = padded.astype(np.float16)  # exact: these types store float16
    lanes = padded.reshape(tiles, TILE, count, parts).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(lanes).view(np.uint8).reshape(tiles, count, -1)


def _padded(values: npt.NDArray[Any], columns: int) -> npt.NDArray[Any]:
    """``values`` with zeros to a multiple of TILE rows and of ``columns`` columns."""
    extra = (-values.shape[0] % TILE, -values.shape[1] % columns)
    return np.pad(values, ((0, extra[0]), (0, extra[1]))) if any(extra) else values
