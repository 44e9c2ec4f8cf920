"""Steps take no more instructions than recorded: the guard against slower kernels that a noisy machine can not break.

How the counts are made, and the command that records them anew, are in tests/runtime/record_instructions.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sixfold import _native
from sixfold.cli.machine import compiler
from tests.runtime.record_instructions import ISAS, RECORDED, count

# Counts of one build agree to a few in a million. 15% leaves room for what is no regression: another patch release of
# the compiler, another C library, an operator that does a little more. Another compiler makes other code.
SAME_COMPILER, OTHER_COMPILER = 1.15, 1.5


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed: apt-get install valgrind")
@pytest.mark.parametrize("isa", ISAS)
def test_no_step_takes_more_instructions_than_recorded(
    isa: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    try:
        _native.limit_float_macs(isa, 1)
    except ValueError as error:
        pytest.skip(str(error))
    recorded = json.loads(RECORDED.read_text())
    allowed = SAME_COMPILER if recorded["compiler"] == compiler() else OTHER_COMPILER
    found = count(isa, tmp_path)
    assert all(found.values()), "nothing was counted: has the native module lost its symbols?"
    shares = {name: value / recorded["counts"][name] for name, value in found.items()}
    assert all(share <= allowed for share in shares.values()), (
        f"instructions over those recorded: {shares}. If that is meant: python -m tests.runtime.record_instructions"
    )
    if all(share < 1 / SAME_COMPILER for share in shares.values()):
        with capsys.disabled():
            print(f"\n{isa} takes fewer instructions than recorded: python -m tests.runtime.record_instructions")
