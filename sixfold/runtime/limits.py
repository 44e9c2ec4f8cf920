"""What this machine can do at most, measured: reading memory, and multiply-accumulates in registers.

Owns: the mixing of measurements and their medians. Must not know: models or plans. csrc/limits.cpp has the loops.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from sixfold import _native

ISAS = ("avx512", "avx2", "scalar")  # best first
RAM_BYTES = 256 << 20  # no cache of the machines this is for holds it
CACHE_BYTES = 256 << 10  # a thread; fits into an L2 cache


@dataclass(frozen=True)
class Limits:
    """Medians, all threads together: bytes a second and multiply-accumulates a second."""

    threads: int
    ram_bytes: float
    cache_bytes: float
    weights_bytes: float | None  # reading a buffer as large as the weights of the model in question
    integer_macs: dict[str, float]  # an instruction set
    float_macs: dict[str, float]
    noise: float = 1.0  # the best round over the median, of the measurement where that is largest: 1 on a quiet machine

    @property
    def best_integer(self) -> float:
        return max(self.integer_macs.values())

    @property
    def best_float(self) -> float:
        return max(self.float_macs.values())

    @property
    def bandwidth(self) -> float:
        """How fast the model's weights can be read at best."""
        return self.weights_bytes or self.ram_bytes


def available() -> list[str]:
    """The instruction sets with loops that run here."""
    found = []
    for isa in ISAS:
        try:
            _native.limit_float_macs(isa, 1)
        except ValueError:
            continue
        found.append(isa)
    return found


class Meter:
    """Takes rounds of all measurements, each once a round, whenever it is asked: before, between and after others."""

    def __init__(self, threads: int, weights: int | None = None) -> None:
        self._threads = threads
        self._weights = weights
        self._tasks: dict[str, Callable[[], float]] = {
            "ram": lambda: statistics.median(_native.limit_read_bandwidth(RAM_BYTES, threads, 3)),
            "cache": lambda: statistics.median(_native.limit_read_bandwidth(CACHE_BYTES * threads, threads, 3)),
        }
        if weights:
            self._tasks["weights"] = lambda: statistics.median(_native.limit_read_bandwidth(weights, threads, 5))
        self._isas = available()
        for isa in self._isas:
            self._tasks[f"integer {isa}"] = lambda isa=isa: _native.limit_integer_macs(isa, threads)  # type: ignore[misc]
            self._tasks[f"float {isa}"] = lambda isa=isa: _native.limit_float_macs(isa, threads)  # type: ignore[misc]
        self._found: dict[str, list[float]] = {name: [] for name in self._tasks}

    def round(self) -> None:
        for name, task in self._tasks.items():
            self._found[name].append(task())

    def limits(self) -> Limits:
        """Medians over the rounds so far, of which there must be one."""
        median = {name: statistics.median(values) for name, values in self._found.items()}
        return Limits(
            threads=self._threads,
            ram_bytes=median["ram"],
            cache_bytes=median["cache"],
            weights_bytes=median.get("weights"),
            integer_macs={isa: median[f"integer {isa}"] for isa in self._isas},
            float_macs={isa: median[f"float {isa}"] for isa in self._isas},
            noise=max(max(values) / median[name] for name, values in self._found.items()),
        )
