from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from sixfold.engine.constraint import NO_MASKS, MaskStage, Words


class Fixed:
    """Allows one id. ``gate``: its mask is not written before that is set."""

    complete, error, forced = False, None, None

    def __init__(self, token_id: int, gate: threading.Event | None = None) -> None:
        self.token_id, self.gate = token_id, gate

    def accept(self, token_id: int) -> None:
        assert token_id == self.token_id


def fill(constraint: Any, row: np.ndarray) -> None:
    if constraint.gate is not None:
        assert constraint.gate.wait(5)
    if constraint.token_id < 0:
        raise ValueError("broken")
    row.fill(0)
    row[constraint.token_id // 32] = 1 << constraint.token_id % 32


def ids(words: Words) -> list[int]:
    return [int(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))[0]) for row in words]


@pytest.mark.parametrize("ahead", [True, False])
def test_masks_of_the_rows_that_have_a_constraint(ahead: bool) -> None:
    stage = MaskStage(fill, 70, ahead=ahead)
    assert stage.begin([None, None]).result() is NO_MASKS
    for count in (1, 5, 2):
        given = [None, *(Fixed(60 + i) for i in range(count)), None]
        masks = stage.begin(given).result()
        assert masks.of == [-1, *range(count), -1]
        assert masks.words is not None and masks.words.shape == (count, 3)
        assert ids(masks.words) == [60 + i for i in range(count)]
    assert stage.filled == 8 and (ahead or stage.own == 8)
    stage.close()


def test_what_the_other_thread_has_not_begun_is_not_waited_for() -> None:
    stage, gate = MaskStage(fill, 64), threading.Event()
    stage.pool.submit(gate.wait, 5)  # it got no core
    assert ids(stage.begin([Fixed(3), Fixed(40)]).result().words) == [3, 40]
    assert stage.own == 2
    gate.set()
    stage.close()


@pytest.mark.parametrize("ahead", [True, False])
def test_a_failure_is_raised_where_it_is_waited_for_and_the_next_step_goes_on(ahead: bool) -> None:
    stage = MaskStage(fill, 64, ahead=ahead)
    with pytest.raises(ValueError, match="broken"):
        stage.begin([Fixed(-1)]).result()
    assert ids(stage.begin([Fixed(7)]).result().words) == [7]
    stage.close()


def test_a_step_that_broke_off_writes_no_more() -> None:
    stage, gate = MaskStage(fill, 64), threading.Event()
    stage.begin([Fixed(1, gate), Fixed(2)])  # nobody waits for it
    gate.set()
    assert ids(stage.begin([Fixed(5)]).result().words) == [5]
    stage.close()
