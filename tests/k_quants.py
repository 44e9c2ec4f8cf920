"""Plain round-to-nearest encoders for the block formats that the ``gguf`` package can only decode.

Owns: Q2_K to Q6_K and IQ4_NL packing, good enough for test weights (no search for better scales).
Must not know: models or files. The byte layouts are those of the GGUF tensor types; a super-block is 256 values,
and the values of one byte come from sub-blocks 32 values (or 64, in Q6_K's low nibbles) apart.
"""

from __future__ import annotations

import gguf
import numpy as np

SUPER = 256  # values in a K super-block
CODEBOOK = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def quantize(weights: np.ndarray, kind: str) -> np.ndarray:
    """Encode float32 ``[rows, cols]`` as GGUF type ``kind``: uint8 ``[rows, bytes per row]`` (F32: unchanged)."""
    if kind == "F32":
        return weights
    if kind in _ENCODERS:
        encode, length = _ENCODERS[kind]
        if weights.shape[-1] % length:
            raise ValueError(f"{kind} needs rows of a multiple of {length}, not {weights.shape[-1]}")
        packed = encode(weights.reshape(-1, length).astype(np.float32))
        return np.ascontiguousarray(packed.reshape(weights.shape[0], -1))
    encoded = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind])
    return np.ascontiguousarray(encoded).view(np.uint8)


def _half(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[n]`` floats as ``[n, 2]`` bytes of float16, and the float32 values those bytes stand for."""
    half = values.astype(np.float16)
    return half.reshape(-1, 1).view(np.uint8), half.astype(np.float32)


def _divide(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """``round(values / by)``, 0 where ``by`` is 0."""
    return np.rint(np.divide(values, by, out=np.zeros(np.broadcast(values, by).shape, np.float32), where=by != 0))


def _affine(
    x: np.ndarray, sub: int, levels: int, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Quantise ``x [n, 256]`` as ``d*scale*q - dmin*minimum``: codes 0..levels, scales and minima 0..steps.

    Returns (codes [n, 256], scales, minima [n, 256/sub], bytes of d, bytes of dmin).
    """
    blocks = x.reshape(len(x), -1, sub)
    low = np.maximum(-blocks.min(-1), 0)
    width = np.maximum(blocks.max(-1) + low, 0) / levels
    d_bytes, d = _half(width.max(-1) / steps)
    m_bytes, dmin = _half(low.max(-1) / steps)
    scales = np.clip(_divide(width, d[:, None]), 0, steps)
    minima = np.clip(_divide(low, dmin[:, None]), 0, steps)
    shifted = blocks + (dmin[:, None] * minima)[..., None]
    codes = np.clip(_divide(shifted, (d[:, None] * scales)[..., None]), 0, levels)
    return _u8(codes).reshape(len(x), SUPER), _u8(scales), _u8(minima), d_bytes, m_bytes


def _symmetric(x: np.ndarray, half_range: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantise ``x [n, 256]`` as ``d*scale*q``, sub-blocks of 16: (codes q + half_range, signed scales, bytes of d)."""
    blocks = x.reshape(len(x), 16, 16)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    wanted = peak / -half_range  # the peak becomes the one code that exists only with a minus sign
    d_bytes, d = _half(np.abs(wanted).max(-1) / steps)
    scales = np.clip(_divide(wanted, d[:, None]), -steps, steps)
    codes = np.clip(_divide(blocks, (d[:, None] * scales)[..., None]), -half_range, half_range - 1) + half_range
    return _u8(codes).reshape(len(x), SUPER), scales, d_bytes


def _u8(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint8)


def _interleave(codes: np.ndarray, width: int, bits: int) -> np.ndarray:
    """Pack ``8/bits`` consecutive runs of ``width`` codes into ``width`` bytes, the first run in the lowest bits."""
    runs = codes.reshape(len(codes), -1, 8 // bits, width)
    packed = np.zeros((len(codes), runs.shape[1], width), np.uint8)
    for index in range(8 // bits):
        packed |= runs[:, :, index] << np.uint8(index * bits)
    return packed.reshape(len(codes), -1)


def _scales_and_minima(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """Eight 6-bit scales and eight 6-bit minima in 12 bytes (Q4_K, Q5_K)."""
    first = [part[:, :4] | ((part[:, 4:] >> 4) << 6) for part in (scales, minima)]
    return np.concatenate([*first, (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)], axis=1)


def _q2_k(x: np.ndarray) -> np.ndarray:
    codes, scales, minima, d, dmin = _affine(x, 16, 3, 15)
    return np.concatenate([scales | (minima << 4), _interleave(codes, 32, 2), d, dmin], axis=1)


def _q3_k(x: np.ndarray) -> np.ndarray:
    codes, signed, d = _symmetric(x, 4, 31)
    scales = _u8(signed + 32)
    low = (scales[:, :8] & 15) | ((scales[:, 8:] & 15) << 4)
    high = _interleave(scales >> 4, 4, 2)
    mask = _interleave(codes >> 2, 32, 1)  # a set bit says that the signed code is not negative
    return np.concatenate([mask, _interleave(codes & 3, 32, 2), low, high, d], axis=1)


def _q4_k(x: np.ndarray) -> np.ndarray:
    codes, scales, minima, d, dmin = _affine(x, 32, 15, 63)
    return np.concatenate([d, dmin, _scales_and_minima(scales, minima), _interleave(codes, 32, 4)], axis=1)


def _q5_k(x: np.ndarray) -> np.ndarray:
    codes, scales, minima, d, dmin = _affine(x, 32, 31, 63)
    high, low = _interleave(codes >> 4, 32, 1), _interleave(codes & 15, 32, 4)
    return np.concatenate([d, dmin, _scales_and_minima(scales, minima), high, low], axis=1)


def _q6_k(x: np.ndarray) -> np.ndarray:
    codes, signed, d = _symmetric(x, 32, 127)
    low, high = _interleave(codes & 15, 64, 4), _interleave(codes >> 4, 32, 2)
    return np.concatenate([low, high, signed.astype(np.int8).view(np.uint8), d], axis=1)


def _iq4_nl(x: np.ndarray) -> np.ndarray:
    peak = np.take_along_axis(x, np.abs(x).argmax(-1)[:, None], -1)[:, 0]
    d_bytes, d = _half(peak / CODEBOOK[0])
    scaled = np.divide(x, d[:, None], out=np.zeros_like(x), where=d[:, None] != 0)
    codes = _u8(np.abs(scaled[..., None] - CODEBOOK).argmin(-1))
    return np.concatenate([d_bytes, _interleave(codes, 16, 4)], axis=1)


_ENCODERS = {
    "Q2_K": (_q2_k, SUPER),
    "Q3_K": (_q3_k, SUPER),
    "Q4_K": (_q4_k, SUPER),
    "Q5_K": (_q5_k, SUPER),
    "Q6_K": (_q6_k, SUPER),
    "IQ4_NL": (_iq4_nl, 32),
}
