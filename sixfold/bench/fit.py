"""How a time grows with a size: a straight line, and the exponent of a power.

Owns: the two fits and how far they are off. Must not know: what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fit:
    """``y = slope * x + base`` with the relative errors made as small as can be, and ``y ~ x ** exponent``."""

    slope: float
    base: float
    largest_residual: float  # of a measured value, relative to it
    exponent: float

    def at(self, x: float) -> float:
        return self.slope * x + self.base


def fit(x: Sequence[float], y: Sequence[float]) -> Fit | None:
    """None for fewer than two different sizes. The values must be positive.

    Errors are weighted by 1 / y: the smallest size counts as much as the largest, which spans decades here.
    """
    xs, ys = np.array(x, np.float64), np.array(y, np.float64)
    if len(np.unique(xs)) < 2:
        return None
    weighted = np.stack([xs / ys, 1 / ys], axis=1)
    scale = np.abs(weighted).max(axis=0)
    slope, base = np.linalg.lstsq(weighted / scale, np.ones(len(ys)), rcond=None)[0] / scale
    exponent = np.polyfit(np.log(xs), np.log(ys), 1)[0]
    residual = np.abs((slope * xs + base) / ys - 1).max()
    return Fit(float(slope), float(base), float(residual), float(exponent))
