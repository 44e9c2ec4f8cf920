from __future__ import annotations

import pytest

from sixfold.engine.kv_waste import ENTRY_NOTES, PAGE_NOTES, Allocation, WasteMeter


def test_empty_slots_and_notes_are_waste() -> None:
    wasted, allocated = Allocation(pages=10, empty_slots=8, entries=3).bytes(page_bytes=1600)
    notes = 10 * PAGE_NOTES + 3 * ENTRY_NOTES
    assert (wasted, allocated) == (800 + notes, 16000 + notes)
    assert Allocation(10, 8).bytes(1600, page_size=32)[0] == 400 + 10 * PAGE_NOTES


def test_notes_are_as_large_as_what_python_says() -> None:
    assert 500 < ENTRY_NOTES < 1000 and PAGE_NOTES < 50


def test_time_weighs() -> None:
    meter = WasteMeter(1 << 20)
    assert meter.ratio == 0
    meter.add(Allocation(1, 16), 0, 1.0)
    assert meter.ratio == pytest.approx(1, abs=1e-3)
    meter.add(Allocation(1, 0), 0, 3.0)
    assert meter.ratio == pytest.approx(0.25, abs=1e-3)
    meter.add(Allocation(4, 0), 0, 1.0)
    assert meter.ratio == pytest.approx(1 / 8, abs=1e-3)


def test_slots_that_a_step_writes_are_no_waste() -> None:
    meter = WasteMeter(1 << 20)
    meter.add(Allocation(2, 32), 24, 1.0)
    assert meter.ratio == pytest.approx(0.25, abs=1e-3)
