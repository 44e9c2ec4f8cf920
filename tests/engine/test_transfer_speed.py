import pytest

from sixfold.engine.transfer_speed import LEAST_TOKENS, PROBE, Speeds


def test_speeds_decide():
    speeds = Speeds()
    assert speeds.decide_to_fetch()
    speeds.computed(LEAST_TOKENS - 1, 1.0)
    assert speeds.computing is None  # such a step tells nothing
    speeds.computed(160, 0.1)
    assert speeds.computing == pytest.approx(0.01)
    speeds.fetched(0.02)
    assert sum(speeds.decide_to_fetch() for _ in range(2 * PROBE)) == 2  # to see whether it still is too slow
    for _ in range(20):
        speeds.fetched(0.001)
    assert speeds.decide_to_fetch()
