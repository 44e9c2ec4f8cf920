"""What memory of a server process is: its plan, its KV memory, and the rest; and what of it others share. Linux.

Owns: reading /proc/PID/smaps. Must not know: how the process was started or loaded.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FIELDS = {"Rss": "rss", "Pss": "pss", "Shared_Clean": "shared_clean", "Private_Clean": "private_clean",
          "Private_Dirty": "private_dirty"}  # fmt: skip


@dataclass
class Part:
    """Bytes that are in memory. ``pss``: those that several processes have count as a part for each."""

    rss: int = 0
    pss: int = 0
    shared_clean: int = 0
    private_clean: int = 0
    private_dirty: int = 0

    def add(self, other: Part) -> None:
        for name in FIELDS.values():
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Mapping:
    path: str
    size: int = 0
    large_pages: bool = False  # asked for
    part: Part = field(default_factory=Part)


def mappings(smaps: str) -> list[Mapping]:
    """The entries of an smaps file."""
    found: list[Mapping] = []
    for line in smaps.splitlines():
        name, _, rest = line.partition(":")
        if name.partition(" ")[0].count("-") == 1 and " " in name:  # an address range begins an entry
            fields = line.split(maxsplit=5)
            found.append(Mapping(fields[5] if len(fields) == 6 else ""))
        elif name == "Size":
            found[-1].size = 1024 * int(rest.split()[0])
        elif name == "VmFlags":
            found[-1].large_pages = "hg" in rest.split()
        elif name in FIELDS:
            setattr(found[-1].part, FIELDS[name], 1024 * int(rest.split()[0]))
    return found


def split(smaps: str) -> dict[str, Any]:
    """``plan``: the mapped plan file. ``kv``: the largest mapping of no file that asked for large pages, which is how
    the executor takes KV memory. ``rest``: the interpreter, libraries, buffers."""
    parts = {"plan": Part(), "kv": Part(), "rest": Part()}
    found = mappings(smaps)
    pools = [one for one in found if not one.path and one.large_pages]
    kv = max(pools, key=lambda one: one.size, default=None)
    for one in found:
        parts["plan" if one.path.endswith(".plan") else "kv" if one is kv else "rest"].add(one.part)
    described = {name: dataclasses.asdict(part) for name, part in parts.items()}
    return {**described, "rss": sum(part.rss for part in parts.values())}


def of(pid: int) -> dict[str, Any]:
    return split(Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace"))


def together(servers: list[dict[str, Any]]) -> dict[str, Any]:
    """``plan_shared_share``: of the plan's resident pages, those that the servers have in common, the least of all."""
    shares = [one["plan"]["shared_clean"] / max(one["plan"]["rss"], 1) for one in servers]
    return {"servers": servers, "plan_shared_share": min(shares)}
