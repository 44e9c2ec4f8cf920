"""Percentiles of measured times."""

from __future__ import annotations

import math
from collections.abc import Sequence

SHOWN = (50, 95, 99)


def percentile(values: Sequence[float], rank: float) -> float:
    """The value that ``rank`` percent of the values do not exceed, between neighbours in proportion; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = (len(ordered) - 1) * rank / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def milliseconds(seconds: Sequence[float], ranks: Sequence[int] = SHOWN) -> dict[str, float | None]:
    """``{"p50": ..., "p95": ..., "p99": ...}`` in milliseconds; None where nothing was measured."""
    return {f"p{rank}": 1000 * percentile(seconds, rank) if seconds else None for rank in ranks}
