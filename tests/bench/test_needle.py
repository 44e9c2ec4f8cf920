"""Recall: planted values are found, in every KV format, and not when they are not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sixfold.bench import needle
from sixfold.runtime.native import NativeExecutor


def test_every_planted_value_is_recalled(tmp_path: Path) -> None:
    for kv_format in ("f16", "int8", "int4"):
        found = needle.recall(tmp_path, 3000, kv_format, 2, 0, lambda done: None)
        assert (found["right"], found["asked"]) == (needle.KEYS, needle.KEYS)


def test_what_is_lost_is_not_recalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeroed pages from the second quarter on: only values before them can be right."""

    def forgetful(executor: NativeExecutor, key: int, position: int) -> int:
        for page in range(executor.num_pages // 4, executor.num_pages - 8):
            executor.write_page(page, bytes(executor.page_bytes))
        return answer(executor, key, position)

    answer = needle._answer
    monkeypatch.setattr(needle, "_answer", forgetful)
    found = needle.recall(tmp_path, 3000, "int4", 1, 0, lambda done: None)
    assert needle.KEYS // 4 <= found["right"] <= needle.KEYS // 2 + 1


def test_codes_do_not_overlap() -> None:
    codes = needle._codes(needle.KEYS)
    np.testing.assert_array_equal(codes @ codes.T, needle.CODE * np.eye(needle.KEYS))
