"""Lays weights out as the kernels read them.

Owns: the byte layout of tiles. Must not know: files, operators.

A matrix [N outputs, K inputs] is cut into tiles of 16 outputs; N is padded to 16 and K to 32 with zeros. A tile is a
run of blocks of 32 inputs:

    | scales [parts][16] | minimums [parts][16], if any | values |        parts = 32 / block

Scales that are bytes have a float16 for every 8 blocks, in front of them: | scales [16] | minimums [16], if any |.
Values lie so that 64 bytes hold 16 outputs by 4 inputs. For int8: [8 groups of 4 inputs][16 outputs][4 inputs] bytes.
For fewer bits a byte holds the nibbles of inputs k (low) and k + 16 (high), [4 groups][16][4]; the bits above follow,
[16][4] bytes whose bit g belongs to group g (5 bits), or two such whose bits 2 i, 2 i + 1 belong to group i of the
first and of the last four (6 bits). csrc/tile_layout.hpp is the same for the kernels. Float tiles are [K][16].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sixfold.compile.formats import BYTE, EXPLICIT_MINIMUM, FORMATS, INT8, Format
from sixfold.models.network import Weight
from sixfold.weights.tensor import Blocks, Tensor, check_finite, split_blocks, split_levels

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
    scales = _byte_scales(tensor) if format.scale_bytes == BYTE else _half_scales(blocks, format)
    q = blocks.q.view(np.uint8)
    if blocks.q.dtype == np.int8 and format.zero:
        q = q + np.uint8(format.zero)
    parts = [*scales.blocks, *_values(_padded(q, BLOCK), format)]
    packed = np.concatenate(parts, axis=2)  # [tiles, blocks, bytes]
    if scales.heads is not None:
        tiles, supers = scales.heads.shape[:2]
        packed = np.concatenate([scales.heads, packed.reshape(tiles, supers, -1)], axis=2)
    return packed.reshape(-1)


def _values(q: Bytes, format: Format) -> list[Bytes]:
    """Integers as they are stored, [rows, columns] -> parts of each block, [tiles, blocks, bytes]."""
    tiles, count = q.shape[0] // TILE, q.shape[1] // BLOCK
    groups = q.reshape(tiles, TILE, count, 8, 4).transpose(0, 2, 3, 1, 4)  # tile, block, group, output, input
    if format.values == INT8:
        return [groups.reshape(tiles, count, -1)]
    parts = [(groups[:, :, :4] & 15) | (groups[:, :, 4:] << 4)]
    extra = format.bits - 4
    per_byte = 8 // extra if extra else 8
    for first in range(0, 8 if extra else 0, per_byte):
        byte = np.zeros_like(groups[:, :, 0])
        for i in range(per_byte):
            byte |= (groups[:, :, first + i] >> 4) << (extra * i)
        parts.append(byte)
    return [part.reshape(tiles, count, -1) for part in parts]


@dataclass(frozen=True, eq=False)
class _Scales:
    blocks: list[Bytes]  # in every block: [tiles, blocks, bytes]
    heads: Bytes | None = None  # before every superblock: [tiles, superblocks, bytes]


def _half_scales(blocks: Blocks, format: Format) -> _Scales:
    explicit = [blocks.minimum] if format.minimum == EXPLICIT_MINIMUM else []
    # exact: these types store float16
    return _Scales([_lanes(values.astype(np.float16), 1) for values in (blocks.scale, *explicit) if values is not None])


def _byte_scales(tensor: Tensor) -> _Scales:
    levels = split_levels(tensor)
    parts = levels.scale.shape[1] * BLOCK // tensor.shape[1]
    bytes_ = [levels.scale] if levels.minimum is None else [levels.scale, levels.minimum]
    halves = [levels.half] if levels.minimum_half is None else [levels.half, levels.minimum_half]
    heads = np.concatenate([_lanes(half, 1) for half in halves], axis=2)
    return _Scales([_lanes(values, parts) for values in bytes_], heads)


def _lanes(values: npt.NDArray[Any], parts: int) -> Bytes:
    """[rows, blocks * parts] -> bytes [tiles, blocks, parts * 16 * size of a value], outputs side by side."""
    padded = _padded(values, parts)
    tiles, count = padded.shape[0] // TILE, padded.shape[1] // parts
    lanes = padded.reshape(tiles, TILE, count, parts).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(lanes).view(np.uint8).reshape(tiles, count, -1)


def _padded(values: npt.NDArray[Any], columns: int) -> npt.NDArray[Any]:
    """``values`` with zeros to a multiple of TILE rows and of ``columns`` columns."""
    extra = (-values.shape[0] % TILE, -values.shape[1] % columns)
    return np.pad(values, ((0, extra[0]), (0, extra[1]))) if any(extra) else values
