"""What this machine has: processor, memory, disk, and how fast memory is read.

Owns: reading the system's files (Linux; elsewhere what is not there is None) and the measurement of bandwidth. Must
not know: models.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sixfold.engine.memory import free_memory
from sixfold.runtime import isa
from sixfold.runtime.native import usable_cores

# Flags of /proc/cpuinfo by the names people know; Arm calls them Features.
FEATURES = {
    "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "avx512f": "AVX-512F", "avx512bw": "AVX-512BW",
    "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX-VNNI", "amx_int8": "AMX int8", "asimd": "NEON",
    "asimddp": "dotprod",
}  # fmt: skip
SMALLEST_BUFFER = 256 << 20
ROUNDS = 5


@dataclass(frozen=True)
class Processor:
    model: str
    cores: int  # usable by this process
    cores_total: int
    features: tuple[str, ...]
    kernels: str  # what isa=auto chooses
    l3_bytes: int | None


@dataclass(frozen=True)
class Bandwidth:
    threads: int
    bytes_per_second: float


def processor() -> Processor:
    info = _read(Path("/proc/cpuinfo"))
    flags = set(_field(info, "flags|Features").split())
    return Processor(
        model=_field(info, "model name|Model|Hardware") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        cores_total=os.cpu_count() or 1,
        features=tuple(name for flag, name in FEATURES.items() if flag in flags),
        kernels=isa.chosen(),
        l3_bytes=_l3(),
    )


def memory() -> tuple[int | None, int]:
    """Bytes in all, and bytes that can be used without swapping (within the container's limit)."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE)
    return (int(match[1]) * 1024 if match else None), free_memory()


def disk_free(path: Path) -> int:
    """Free bytes where ``path`` is or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def power_counters() -> list[str]:
    """The energy or power counters this process can see."""
    found = [*Path("/sys/class/powercap").glob("*/energy_uj"), *Path("/sys/class/hwmon").glob("*/energy*_input")]
    return [str(path) for path in (*found, *Path("/sys/class/hwmon").glob("*/power*_input"))]


def compiler() -> str | None:
    """The first line of what the C++ compiler says about itself; None when there is none."""
    import subprocess

    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            try:
                done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True)
            except (OSError, subprocess.SubprocessError):
                continue
            return done.stdout.partition("\n")[0]
    return None


def bandwidths(counts: tuple[int, ...], l3_bytes: int | None, available: int) -> list[Bandwidth]:
    """How fast so many threads read memory together: the largest byte of a buffer that no cache holds.

    The buffer is four times the L3 cache, at least 256 MiB and at most a quarter of the free memory; the best of five
    rounds counts, since a neighbour can only make a round slower. numpy's maximum over bytes is the simplest of its
    reductions, so the processor waits for memory and not the other way round.
    """
    size = min(max(4 * (l3_bytes or 0), SMALLEST_BUFFER), max(available // 4, 1 << 20))
    buffer = np.zeros(size, np.uint8)
    buffer[:] = 1  # touched: untouched pages are all the same page of zeros
    return [Bandwidth(count, size / _best_time(buffer, count)) for count in counts]


def _best_time(buffer: np.ndarray, threads: int) -> float:
    parts = np.array_split(buffer, threads)
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        _together([part.max for part in parts])
        best = min(best, time.perf_counter() - began)
    return best


def _together(tasks: list[Callable[[], object]]) -> None:
    """Runs every task in a thread of its own; numpy lets go of the interpreter while it reduces."""
    workers = [threading.Thread(target=task) for task in tasks]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _l3() -> int | None:
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        match = re.fullmatch(r"(\d+)([KM])", _read(index / "size").strip())
        if _read(index / "level").strip() == "3" and match:
            return int(match[1]) << (10 if match[2] == "K" else 20)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, names: str) -> str:
    match = re.search(rf"^(?:{names})\s*:[ \t]*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""
