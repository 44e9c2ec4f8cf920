"""Growth: the steps that are run, on a fake executor, and what is fitted."""

from __future__ import annotations

import pytest

from sixfold.bench import growth
from sixfold.bench.growth import Size, StepTime
from sixfold.runtime.profile import KindTotal
from tests.fakes import FakeExecutor


def test_batches_at_the_shortest_context_and_contexts_alone() -> None:
    assert growth.cases([8, 1, 2], [128, 64]) == [(1, 64), (2, 64), (8, 64), (1, 128)]
    assert growth.pages_for((3, 33)) == 9


def test_every_case_is_run_every_round_over_pages_of_its_own() -> None:
    executor = FakeExecutor(num_pages=40)
    executor.placed = False
    rounds: list[int] = []
    wanted = growth.cases([1, 4], [20, 600])
    found = growth.measure(executor, wanted, 3, rounds.append)
    assert [(one.batch, one.context) for one in found] == wanted and all(one.seconds > 0 for one in found)
    assert len(executor.batches) == 1 + 4 * len(wanted) and rounds[-1] == 3
    assert not (executor.memory == 1_000_003).all(axis=1)[: growth.pages_for((1, 600))].any(), "a page was not written"
    for batch, (count, context) in zip(executor.batches[1:], wanted * 4, strict=True):
        assert batch.counts.tolist() == [1] * count and set(batch.starts.tolist()) == {context - 1}
        assert len(set(batch.pages.tolist())) == growth.pages_for((count, context))


def test_lines_are_through_the_right_points() -> None:
    times = [StepTime(1, 100, 0.010), StepTime(4, 100, 0.016), StepTime(1, 1100, 0.015)]
    small = growth.described("small", Size(int(1e9), int(2e9)), times)
    large = growth.described("large", Size(int(3e9), int(4e9)), [StepTime(1, 100, 0.030)])
    found = growth.fits([small, large])
    assert (found["batch"]["slope"], found["batch"]["base"]) == pytest.approx((2, 8))
    assert (found["context"]["slope"], found["context"]["base"]) == pytest.approx((5, 9.5))
    assert (found["weights"]["slope"], found["weights"]["base"]) == pytest.approx((10, 0))
    assert (found["parameters"]["slope"], found["parameters"]["base"]) == pytest.approx((10, -10))
    assert growth.fits([small])["weights"] is None


def test_attention_is_set_against_the_whole_step() -> None:
    totals = [KindTotal("qkv", seconds=0.25), KindTotal("attention", seconds=0.5)]
    assert growth.shared(totals, 1.0, 10) == {"step_ms": 100, "attention_ms": 50, "attention_share": 0.5}
