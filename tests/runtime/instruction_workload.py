"""The fixed small workload whose instructions are counted: run as a program under valgrind by record_instructions.py.

``python tests/runtime/instruction_workload.py ISA PLAN...`` runs, for each plan, one prefill of 48 tokens and one
decode step of four sequences, both with logits. One thread, so that nothing spins.
"""

from __future__ import annotations

import sys

import numpy as np

from sixfold import _native

PREFILL = 48
CONTEXTS = (1, 20, 47, 150)  # the last one is in the second attention split
PAGES = 12  # a sequence


def ints(values: object) -> np.ndarray:
    return np.array(values, np.int32)


def run(plan: np.ndarray, isa: str) -> None:
    count = len(CONTEXTS)
    executor = _native.Executor(plan, isa, 1, 64, PAGES * count, ["f16"], np.empty(0, np.float32), 1)
    out = np.empty((count, executor.logits_width), np.float32)
    executor.forward(ints(range(PREFILL)), ints([0]), ints([PREFILL]), ints(range(PAGES)), ints([0, PAGES]))
    executor.logits(ints([PREFILL - 1]), out)
    executor.copy_pages(ints([]), ints([]))  # valgrind is told to write down its count whenever this is called
    executor.forward(
        ints(range(count)), ints(CONTEXTS) - 1, ints([1] * count), ints(range(PAGES * count)),
        ints(range(count + 1)) * PAGES,
    )  # fmt: skip
    executor.logits(ints(range(count)), out)
    executor.copy_pages(ints([]), ints([]))


if __name__ == "__main__":
    for path in sys.argv[2:]:
        run(np.memmap(path, np.uint8, "r"), sys.argv[1])
