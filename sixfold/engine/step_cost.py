"""What one more row costs a decode step, from the times of steps.

Owns: a line through (rows, seconds) of recent steps. Must not know: why they had so many rows.
"""

from __future__ import annotations

KEEP = 0.99  # how much of what is known outlasts a step
FIXED_ROWS = 8.0  # a step is taken to cost as much as its rows and these, until steps of different sizes were seen
DOUBT = 0.5  # rows squared: how far apart sizes must lie to say more than that


class StepCost:
    def __init__(self) -> None:
        self._fixed = FIXED_ROWS  # as it was last seen
        self._weight = self._rows = self._seconds = self._rows2 = self._both = 0.0

    def add(self, rows: int, seconds: float) -> None:
        if self._weight:
            most = max(self._at(rows), rows * self._seconds / self._rows)
            seconds = min(seconds, 3 * most)  # somebody else had the machine
        self._weight = self._weight * KEEP + 1.0
        self._rows = self._rows * KEEP + rows
        self._seconds = self._seconds * KEEP + seconds
        self._rows2 = self._rows2 * KEEP + rows * rows
        self._both = self._both * KEEP + rows * seconds
        mean = self._rows / self._weight
        if self._rows2 / self._weight - mean * mean > 1.0:  # sizes differ: kept for when they do not any more
            self._fixed = max(self._seconds / self._weight / self._slope() - mean, 0.0)

    def share_of_a_row(self, sequences: int) -> float:
        """A row's time, in the time that a step of ``sequences`` rows takes for each of its tokens: 0 to 1."""
        if not self._weight:
            return sequences / (sequences + FIXED_ROWS)
        return min(1.0, self._slope() * sequences / max(self._at(sequences), 1e-9))

    def _at(self, rows: float) -> float:
        mean = self._rows / self._weight
        return max(self._seconds / self._weight + self._slope() * (rows - mean), 1e-9)

    def _slope(self) -> float:
        """Seconds a row; between what was measured and what is taken for granted by how much was seen."""
        mean_rows, mean_seconds = self._rows / self._weight, self._seconds / self._weight
        spread = max(self._rows2 / self._weight - mean_rows * mean_rows, 0.0)
        together = self._both / self._weight - mean_rows * mean_seconds
        assumed = mean_seconds / (mean_rows + self._fixed)
        measured = (together + DOUBT * assumed) / (spread + DOUBT)
        return min(max(measured, 0.1 * assumed), mean_seconds / mean_rows)
