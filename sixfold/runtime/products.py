"""Matrix products with packed weights of any format, timed by themselves.

Owns: matrices of made-up contents and how much of them one measurement multiplies. Must not know: models.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sixfold import _native
from sixfold.compile.formats import Format
from sixfold.compile.plan import matrix_record

BUFFER_BYTES = 64 << 20  # of weights that pass by: more than the caches hold, as in a model
RUN_MACS = 2e8  # of one measurement and thread, some milliseconds


@dataclass(frozen=True)
class ProductTime:
    """``rows`` rows of activations by a matrix of ``outputs`` x ``columns``: the median of several runs."""

    rows: int
    seconds: float  # of one whole matrix
    weight_bytes: int  # of one whole matrix
    macs: int


def time_products(
    format: Format, outputs: int, columns: int, row_counts: Sequence[int], *, isa: str, threads: int, rounds: int
) -> list[ProductTime]:
    """One entry a row count; every round measures all of them in turn.

    The matrix is repeated until it fills BUFFER_BYTES, so that its weights come from memory, as the layers of a model
    do one after the other. Raises ValueError if ``isa`` can not run here.
    """
    one = _native.Product(matrix_record(outputs, columns, format), isa, 1, 1)
    size = one.tiles * one.tile_bytes
    copies = max(1, BUFFER_BYTES // size)
    record = matrix_record(one.tiles * 16 * copies, columns, format)
    product = _native.Product(record, isa, max(row_counts), threads)
    tiles = {rows: _tiles(product.tiles, columns, rows, threads) for rows in row_counts}
    found: dict[int, list[float]] = {rows: [] for rows in row_counts}
    for _ in range(rounds + 1):
        for rows in row_counts:
            found[rows].append(product.run(rows, tiles[rows]) / tiles[rows])
    return [  # the first round warmed up
        ProductTime(rows, statistics.median(times[1:]) * one.tiles, size, rows * outputs * columns)
        for rows, times in found.items()
    ]


def _tiles(available: int, columns: int, rows: int, threads: int) -> int:
    wanted = int(RUN_MACS * threads / (16 * columns * rows))
    return min(available, max(wanted, 4 * threads))
