"""Counts the instructions of fixed steps under valgrind, and records the counts that test_instructions.py allows.

After a change that is meant to cost more, or that made things quicker (so that the guard stays near the truth):

    .venv/bin/python -m tests.runtime.record_instructions

Times on a shared machine vary by tens of percent; the instructions that the executor takes vary by a few in a million
between runs of one build. valgrind knows no AVX-512, so the scalar and AVX2 kernels are counted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from sixfold.cli.machine import compiler
from sixfold.compile import build
from sixfold.weights.model_file import open_model
from tests.tiny_models import write_gguf

RECORDED = Path(__file__).with_name("instructions.json")
WORKLOAD = Path(__file__).with_name("instruction_workload.py")
ISAS = ("scalar", "avx2")
MIXES = ("mixed", "Q4_K_M")  # between them: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q6_K and F16
PHASES = ("prefill", "decode")


def count(isa: str, directory: Path) -> dict[str, int]:
    """Instructions inside the executor by ``isa/mix/phase``. Raises RuntimeError with what valgrind said."""
    plans = [str(_plan(mix, directory)) for mix in MIXES]
    out = directory / "callgrind"
    command = [
        "valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--collect-atstart=no",
        "--toggle-collect=sixfold::Executor::forward(*", "--toggle-collect=sixfold::Executor::logits(*",
        "--dump-before=sixfold::Executor::copy_pages(*", sys.executable, str(WORKLOAD), isa, *plans,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wanted = [f"{isa}/{mix}/{phase}" for mix in MIXES for phase in PHASES]
    parts = [Path(f"{out}.{index + 1}") for index in range(len(wanted))]
    if done.returncode != 0 or not all(part.exists() for part in parts):
        raise RuntimeError(f"valgrind: {done.stderr.strip()[-800:]}")
    return {name: _total(part) for name, part in zip(wanted, parts, strict=True)}


def _plan(mix: str, directory: Path) -> Path:
    path = directory / f"{mix}.plan"
    with open_model(write_gguf("llama-wide", directory / f"{mix}.gguf", mix)) as model:
        build(model, cache=False).data.tofile(path)
    return path


def _total(part: Path) -> int:
    match = re.search(r"^summary: (\d+)", part.read_text(), re.MULTILINE)
    return int(match[1]) if match else 0


def main() -> None:
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as directory:
        for isa in ISAS:
            counts |= count(isa, Path(directory))
    old = json.loads(RECORDED.read_text())["counts"] if RECORDED.exists() else {}
    for name, value in counts.items():
        print(f"{name:24} {value:12} {'' if name not in old else f'{100 * (value / old[name] - 1):+.1f}%'}")
    RECORDED.write_text(json.dumps({"compiler": compiler(), "counts": counts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
