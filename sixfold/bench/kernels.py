"""The matrix products of a model's shapes in every format, against what the machine can do.

Owns: which products are measured, and their share of the limits. Must not know: how they are timed or shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sixfold.compile.formats import BYTE, FORMATS, Format
from sixfold.compile.pack import SUPERBLOCK
from sixfold.runtime.limits import Limits, Meter
from sixfold.runtime.products import BUFFER_BYTES, ProductTime, time_products

Shape = tuple[int, int]  # outputs, columns


def formats_named(names: Iterable[str]) -> list[Format]:
    """The distinct packed formats of GGUF types; KeyError with the name of one that is unknown."""
    return list(dict.fromkeys(FORMATS[name] for name in names))


def types_of(format: Format) -> list[str]:
    """The GGUF types that are packed like this."""
    return [name for name, packed in FORMATS.items() if packed == format]


def whole_columns(columns: int, format: Format) -> int:
    """The next number of columns that the format can have: K-quants share a float16 among 256."""
    unit = SUPERBLOCK if format.scale_bytes == BYTE else 1
    return -(-columns // unit) * unit


def measure(
    shapes: Sequence[Shape], formats: Sequence[Format], row_counts: Sequence[int], threads: Sequence[int],
    *, isa: str, rounds: int, report: Callable[[int], None],
) -> dict[str, Any]:  # fmt: skip
    """Limits and products for each number of threads; the limits are measured again before every shape."""
    meters = {count: Meter(count, BUFFER_BYTES) for count in threads}
    found: list[tuple[int, Shape, Format, list[ProductTime]]] = []
    for outputs, columns in shapes:
        for meter in meters.values():
            meter.round()
        for format in formats:
            shape = (outputs, whole_columns(columns, format))
            for count in threads:
                times = time_products(format, *shape, row_counts, isa=isa, threads=count, rounds=rounds)
                found.append((count, shape, format, times))
                report(len(found))
    limits = {count: meter.limits() for count, meter in meters.items()}
    return {
        "limits": [dataclasses.asdict(one) for one in limits.values()],
        "products": [
            described(shape, format, one, limits[count]) for count, shape, format, times in found for one in times
        ],
    }


def described(shape: Shape, format: Format, time: ProductTime, limits: Limits) -> dict[str, Any]:
    """One product as plain data. Its limit is the slower of reading the weights and multiplying."""
    reading = time.weight_bytes / limits.bandwidth
    multiplying = time.macs / (limits.best_integer if format.quantised else limits.best_float)
    return {
        "outputs": shape[0],
        "columns": shape[1],
        "format": str(format),
        "types": types_of(format),
        "rows": time.rows,
        "threads": limits.threads,
        "ms": 1000 * time.seconds,
        "gb_per_second": time.weight_bytes / time.seconds / 1e9,
        "gmac_per_second": time.macs / time.seconds / 1e9,
        "share_of_limit": max(reading, multiplying) / time.seconds,
        "bound": "memory" if reading > multiplying else "int8 MACs" if format.quantised else "float MACs",
    }
