"""The sampler in plain numpy: every filter sorts the vocabulary, every sum is a Python integer.

Owns: what ``csrc/sampling.cpp`` must draw, to the last bit. The float32 steps of ``weights`` are those of the native
code, whose accuracy is tested against the mathematical function elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from sixfold.types import SamplingParams

F32 = np.float32
POLYNOMIAL = (0.0013814461417496204, 0.008368780836462975, 0.04166839271783829, 0.1666651964187622, 0.4999999403953552)


def draw(
    row: NDArray[np.float32],
    params: SamplingParams,
    bits: int,
    tokens: Sequence[int] = (),
    prompt_length: int = 0,
    forbidden: Collection[int] = (),
) -> int | None:
    """The token that 64 random ``bits`` choose, None if nothing is possible."""
    with np.errstate(all="ignore"):
        row = _edited(row, params, tokens, prompt_length, forbidden)
        largest = row.max()
        if largest == -np.inf:
            return None
        if params.greedy:
            return int(np.argmax(row))
        if largest == np.inf:
            row = np.where(row == np.inf, F32(0), F32(-np.inf))
        x, weight = weights(row, params)
    kept = _filtered(row, x, weight, params)
    total = int(weight[kept].sum())
    ends = np.cumsum(weight[kept])
    return int(kept[np.searchsorted(ends, np.uint64((bits * total) >> 64), side="right")])


def _edited(
    row: NDArray[np.float32],
    params: SamplingParams,
    tokens: Sequence[int],
    prompt_length: int,
    forbidden: Collection[int],
) -> NDArray[np.float32]:
    row = row.copy()
    for token, bias in params.logit_bias.items():
        row[token] += F32(bias)
    row[list(forbidden)] = -np.inf
    for token in set(tokens):
        row[token] = row[token] / F32(params.repetition_penalty) if row[token] > 0 else (
            row[token] * F32(params.repetition_penalty)
        )  # fmt: skip
        if count := list(tokens[prompt_length:]).count(token):
            row[token] -= F32(params.frequency_penalty) * F32(count)
            row[token] -= F32(params.presence_penalty)
    row[np.isnan(row)] = -np.inf
    return row


def weights(row: NDArray[np.float32], params: SamplingParams) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
    """log weight, float32, and weight as an integer: round(exp(log weight) * 2**44), 0 below min_p."""
    inverse = F32(1) / np.maximum(F32(params.temperature), np.finfo(F32).tiny)
    x = (row - row.max()) * inverse
    cutoff = max(F32(math.log(params.min_p)) if params.min_p else F32(-32), F32(-32))
    near = np.where(x >= cutoff, x, F32(0))
    n = (near * F32(float.fromhex("0x1.715476p0")) + F32(1.5 * 2**23)) - F32(1.5 * 2**23)
    r = (near - n * F32(float.fromhex("0x1.63p-1"))) - n * F32(float.fromhex("-0x1.bd0106p-13"))
    p = F32(POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        p = p * r + F32(coefficient)
    p = (p * (r * r) + r) + F32(1)
    weight = np.rint(np.ldexp(p.astype(np.float64), n.astype(np.int32) + 44)).astype(np.uint64)
    return x, np.where(x >= cutoff, weight, np.uint64(0))


def _filtered(
    row: NDArray[np.float32], x: NDArray[np.float32], weight: NDArray[np.uint64], params: SamplingParams
) -> NDArray[np.int64]:
    kept = np.flatnonzero(weight)
    if 0 < params.top_k < len(row):
        kept = np.sort(_ranked(kept, row)[: params.top_k])
    if params.top_p < 1:
        kept = _lightest_prefix(_ranked(kept, row), weight, params.top_p)
    if params.typical_p < 1:
        total = int(weight[kept].sum())
        mean = np.cumsum(weight[kept].astype(np.float64) / float(total) * x[kept].astype(np.float64))[-1]
        key = np.zeros(len(row), F32)
        key[kept] = -np.abs(x[kept].astype(np.float64) - mean)
        kept = _lightest_prefix(_ranked(kept, key), weight, params.typical_p)
    return kept


def _ranked(kept: NDArray[np.int64], key: NDArray[np.float32]) -> NDArray[np.int64]:
    return kept[np.lexsort((kept, -key[kept]))]


def _lightest_prefix(ranked: NDArray[np.int64], weight: NDArray[np.uint64], share: float) -> NDArray[np.int64]:
    total = int(weight[ranked].sum())
    needed = min(math.ceil(float(total) * share), total)
    length = int(np.searchsorted(np.cumsum(weight[ranked]), np.uint64(needed), side="left")) + 1
    return np.sort(ranked[:length])
