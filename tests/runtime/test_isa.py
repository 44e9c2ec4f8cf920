from __future__ import annotations

import pytest

from sixfold import _native
from sixfold.runtime import isa


def test_what_auto_stands_for_is_what_the_kernels_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isa.chosen() in (*isa.SETS, "scalar")

    def refuse(name: str, *arguments: object) -> None:
        raise ValueError(f"this processor has no {name}")

    monkeypatch.setattr(_native, "kernel_rms_norm", refuse)
    assert isa.chosen() == "scalar"
