"""The block layouts of the quantised tensor types of GGUF and how their bits become integers and scales.

Owns: one :class:`BlockFormat` per type and its decoder. Must not know: files, tensor names, or what kernels want.
The layouts are those of ggml (``ggml-common.h``, the ``block_*`` structs). Every decoder works on many blocks at once,
writes into arrays the caller owns and makes no temporary wider than it must, since whole models pass through here.

A weight is ``scale * q - minimum``, computed in float32. ``q`` is written as bytes: two's complement where the type
is signed, so arithmetic on it wraps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
# decode(blocks [n, bytes], q [n, weights], scale [n, groups], minimum [n, groups]); a type without a minimum
# leaves that array alone
Decoder = Callable[[Bytes, Bytes, Floats, Floats], None]
# levels(blocks [n, bytes]) -> the integers [n, groups] that a block's float16 scale and minimum are multiplied by
Levels = tuple[npt.NDArray[np.uint8] | npt.NDArray[np.int8], npt.NDArray[np.uint8] | None]


@dataclass(frozen=True)
class BlockFormat:
    """How one type lays out a block: ``weights`` values in ``bytes`` bytes, a scale every ``group`` values."""

    weights: int
    bytes: int
    group: int
    halves: tuple[int, ...]  # where in a block its float16 scale and minimum stand
    decode: Decoder
    levels: Callable[[Bytes], Levels] | None = None  # of types whose scales are an integer times the block's float16
    signed: bool = False  # q is int8; otherwise uint8 below 16, or a small non-negative int8
    nibble: bool = False  # q fits in four bits, unsigned
    minimum: bool = False
    zero: int = 0  # the q that means 0, for a type whose minimum is zero * scale


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte ``at`` of every block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes, out: Bytes) -> None:
    """packed [n, parts * width] -> out [n, parts, 2, width]: low nibbles, then high ones."""
    packed = packed.reshape(out.shape[0], out.shape[1], out.shape[3])
    np.bitwise_and(packed, 15, out=out[:, :, 0])
    np.right_shift(packed, 4, out=out[:, :, 1])


def _add_bit(bits: Bytes, q: Bytes) -> None:
    """Adds 16 to each q whose bit is set; bits [n, 4] hold one bit a weight, lowest first."""
    high = np.unpackbits(bits, axis=1, bitorder="little")
    high <<= 4
    q |= high


def _q4_0(blocks: Bytes, q: Bytes, scale: Floats, minimum: Floats) -> None:
    scale[:] = _half(blocks, 0)
    _nibbles(blocks[:, 2:18], q.reshape(-1, 1, 2, 16))


def _q4_1(blocks: Bytes, q: Bytes, scale: Floats, minimum: Floats) -> None:
    scale[:] = _half(blocks, 0)
    np.negative(_half(blocks, 2), out=minimum)
    _nibbles(blocks[:, 4:20], q.reshape(-1, 1, 2, 16))


def _q5_0(blocks: Bytes, q: Bytes, scale: Floats, minimum: Floats) -> None:
    scale[:] = _half(blocks, 0)
    _nibbles(blocks[:, 6:22], q.reshape(-1, 1, 2, 16))
    _add_bit(blocks[:, 2:6], q)
    q -= 16


def _q5_1(blocks: Bytes, q: Bytes, scale: Floats, minimum: Floats) -> None:
    scale[:] = _half(blocks, 0)
    np.negative(_half(blocks, 2), out=minimum)
    _nibbles(blocks[:, 8:24], q.reshape(-1, 1, 2, 16))
    _add_bit(blocks[:, 4:8], q)


def _q8_0(blocks: Bytes, q: Bytes, scale: Floats, minimum: Floats) -> None:
    scale[:] = _half(blocks, 0)
    q[:] = blocks[:, 2:34]


# The 16 levels that an IQ4_NL nibble names
IQ4_NL_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_IQ4_NL_TABLE = bytes(level & 0xFF for level in IQ4_NL_LEVELS) * 16


def _iq4_nl(blocks: Bytes, q: Bytes, scale: Floats, minimum: Floats) -> None:
    scale[:] = _half(blocks, 0)
    _nibbles(blocks[:, 2:18], q.reshape(-1, 1, 2, 16))
    # bytes.translate looks bytes up without the 64-bit indices that numpy would make
    q[:] = np.frombuffer(q.tobytes().translate(_IQ4_NL_TABLE), np.uint8).reshape(q.shape)


def _crumbs(packed: Bytes, out: Bytes) -> None:
    """packed [n, 64] -> out [n, 2, 4, 32]: the four 2-bit fields of each run of 32 bytes, lowest first."""
    packed = packed.reshape(-1, 2, 32)
    for field in range(4):
        np.right_shift(packed, 2 * field, out=out[:, :, field])
    out &= 3


def _q2_k_levels(blocks: Bytes) -> Levels:
    return blocks[:, :16] & 15, blocks[:, :16] >> 4


def _q2_k(blocks: Bytes, q: Bytes, scale: Floats, minimum: Floats) -> None:
    # scales[16] (low nibble scale, high nibble minimum), qs[64], d, dmin
    scales, minimums = _q2_k_levels(blocks)
    np.multiply(_half(blocks, 80), scales, out=scale, dtype=np.float32)
    np.multiply(_half(blocks, 82), minimums, out=minimum, dtype=np.float32)
    _crumbs(blocks[:, 16:80], q.reshape(-1, 2, 4, 32))


def _q3_k_levels(blocks: Bytes) -> Levels:
    six = np.empty((len(blocks), 16), np.uint8)
    _nibbles(blocks[:, 96:104], six.reshape(-1, 1, 2, 8))
    for field in range(4):
        six[:, 4 * field : 4 * field + 4] |= ((blocks[:, 104:108] >> (2 * field)) & 3) << 4
    six -= 32
    return six.view(np.int8), None


def _q3_k(blocks: Bytes, q: Bytes, scale: Floats, minimum: Floats) -> None:
    # hmask[32] (bit i: third bit of run i of 32 weights, inverted), qs[64], scales[12] (16 of 6 bits), d
    _crumbs(blocks[:, 32:96], q.reshape(-1, 2, 4, 32))
    runs = q.reshape(-1, 8, 32)
    for run in range(8):
        runs[:, run] |= ((blocks[:, :32] >> run) & 1) << 2
    q -= 4
    np.multiply(_half(blocks, 108), _q3_k_levels(blocks)[0], out=scale, dtype=np.float32)


def _k_levels(blocks: Bytes) -> Levels:
    """The eight 6-bit scales and eight 6-bit minimums that Q4_K and Q5_K pack in 12 bytes, each as uint8 [n, 8].

    Bytes 0..3 hold scales 0..3 and bytes 4..7 minimums 0..3 in their low six bits. Their two top bits are the top bits
    of scales and minimums 4..7, whose low nibbles share bytes 8..11 (scale low, minimum high).
    """
    first, second, shared = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, (shared & 15) | ((first >> 6) << 4)], axis=1)
    minimums = np.concatenate([second & 63, (shared >> 4) | ((second >> 6) << 4)], axis=1)
    return scales, minimums


def _k_header(blocks: Bytes, scale: Floats, minimum: Floats) -> None:
    """d, dmin, scales[12]: the first 16 bytes of Q4_K and Q5_K."""
    scales, minimums = _k_levels(blocks)
    np.multiply(_half(blocks, 0), scales, out=scale, dtype=np.float32)
    np.multiply(_half(blocks, 2), minimums, out=minimum, dtype=np.float32)


def _q4_k(blocks: Bytes, q: Bytes, scale: Floats, minimum: Floats) -> None:
    _k_header(blocks, scale, minimum)
    _nibbles(blocks[:, 16:144], q.reshape(-1, 4, 2, 32))


def _q5_k(blocks: Bytes, q: Bytes, scale: Floats, minimum: Floats) -> None:
    # header, qh[32] (bit i: fifth bit of run i of 32 weights), qs[128]
    _k_header(blocks, scale, minimum)
    _nibbles(blocks[:, 48:176], q.reshape(-1, 4, 2, 32))
    runs = q.reshape(-1, 8, 32)
    for run in range(8):
        runs[:, run] |= ((blocks[:, 16:48] >> run) & 1) << 4


def _q6_k_levels(blocks: Bytes) -> Levels:
    return blocks[:, 192:208].view(np.int8), None


def _q6_k(blocks: Bytes, q: Bytes, scale: Floats, minimum: Floats) -> None:
    # ql[128], qh[64], scales[16] int8, d
    _nibbles(blocks[:, :128], q.reshape(-1, 2, 2, 64))
    high = np.empty_like(q)
    _crumbs(blocks[:, 128:192], high.reshape(-1, 2, 4, 32))
    high <<= 4
    q |= high
    q -= 32
    np.multiply(_half(blocks, 208), _q6_k_levels(blocks)[0], out=scale, dtype=np.float32)


FORMATS: dict[str, BlockFormat] = {
    "Q4_0": BlockFormat(32, 18, 32, (0,), _q4_0, nibble=True, minimum=True, zero=8),
    "Q4_1": BlockFormat(32, 20, 32, (0, 2), _q4_1, nibble=True, minimum=True),
    "Q5_0": BlockFormat(32, 22, 32, (0,), _q5_0, signed=True),
    "Q5_1": BlockFormat(32, 24, 32, (0, 2), _q5_1, minimum=True),
    "Q8_0": BlockFormat(32, 34, 32, (0,), _q8_0, signed=True),
    "Q2_K": BlockFormat(256, 84, 16, (80, 82), _q2_k, _q2_k_levels, minimum=True),
    "Q3_K": BlockFormat(256, 110, 16, (108,), _q3_k, _q3_k_levels, signed=True),
    "Q4_K": BlockFormat(256, 144, 32, (0, 2), _q4_k, _k_levels, nibble=True, minimum=True),
    "Q5_K": BlockFormat(256, 176, 32, (0, 2), _q5_k, _k_levels, minimum=True),
    "Q6_K": BlockFormat(256, 210, 16, (208,), _q6_k, _q6_k_levels, signed=True),
    "IQ4_NL": BlockFormat(32, 18, 32, (0,), _iq4_nl, signed=True),
}
FLOATS: dict[str, int] = {"F32": 4, "F16": 2, "BF16": 2}  # bytes a value


def block_size(type: str) -> tuple[int, int]:
    """(values, bytes) of the smallest unit that a row of this type is made of."""
    if type in FLOATS:
        return 1, FLOATS[type]
    return FORMATS[type].weights, FORMATS[type].bytes
