"""How much memory this process may still take.

Owns: the reading of the system's counters (Linux, with its container limits). Must not know: what the memory is for.
"""

from __future__ import annotations

import os
from pathlib import Path

GROUP = Path("/sys/fs/cgroup")  # the container's own limits, when there are any


def free_memory() -> int:
    """Bytes that can be used without swapping, within the container's limit if there is one."""
    free = _available()
    try:
        limit = (GROUP / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((GROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no limit, or another kind of system
    return max(free, 0)


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE")) // 2
