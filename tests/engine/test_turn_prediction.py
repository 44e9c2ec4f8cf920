from __future__ import annotations

from collections import deque

from sixfold.engine import turn_prediction
from sixfold.engine.turn_prediction import TurnPrediction


def due(prediction, now):
    found = list(prediction.due(now))
    for conversation in found:
        conversation.foreseen = True
    return [conversation.content for conversation in found]


def paused(prediction, pauses, start=0.0):
    """Conversations that each went on once, after these pauses."""
    for number, pause in enumerate(pauses):
        page = b"paused %d" % number
        prediction.ended(page, page, deque(), start)
        prediction.goes_on([page], start + pause)


def test_nothing_is_due_before_pauses_are_known():
    prediction = TurnPrediction()
    prediction.ended(b"a", "a", deque(), 0.0)
    assert not due(prediction, 10.0)


def test_due_while_pauses_usually_end_and_once_only():
    prediction = TurnPrediction()
    paused(prediction, range(10, 110, 10))
    prediction.ended(b"a", "a", deque(), 1000.0)
    assert not due(prediction, 1005.0)  # a tenth have ended after 20 seconds
    assert due(prediction, 1030.0) == ["a"]
    assert not due(prediction, 1031.0)
    prediction.ended(b"b", "b", deque(), 1000.0)
    assert not due(prediction, 1151.0) and not len(prediction)  # it has probably been left


def test_its_own_pauses_count_once_there_are_some():
    prediction = TurnPrediction()
    paused(prediction, [1.0] * 20)
    pauses, now = deque(), 0.0
    for turn in range(4):
        prediction.ended(b"turn %d" % turn, "slow", pauses, now)
        now += 300.0
        pauses = prediction.goes_on([b"other", b"turn %d" % turn], now)
    prediction.ended(b"last", "slow", pauses, now)
    assert not due(prediction, now + 1.5)
    assert due(prediction, now + 300.0) == ["slow"]


def test_a_turn_replaces_the_one_before():
    prediction = TurnPrediction()
    paused(prediction, [10.0] * 5)
    prediction.ended(b"1", "first", deque(), 0.0)
    pauses = prediction.goes_on([b"1"], 10.0)
    prediction.ended(b"2", "second", pauses, 12.0)
    assert len(prediction) == 1 and due(prediction, 22.0) == ["second"]
    prediction.clear()
    assert not len(prediction)


def test_only_so_many_are_remembered(monkeypatch):
    monkeypatch.setattr(turn_prediction, "MOST_CONVERSATIONS", 3)
    prediction = TurnPrediction()
    paused(prediction, [10.0] * 5)
    for number in range(5):
        prediction.ended(b"%d" % number, number, deque(), 0.0)
    assert due(prediction, 10.0) == [2, 3, 4]
