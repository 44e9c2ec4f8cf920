"""Time per operator: that the executor counts each once, and that totals are what the shapes say."""

from __future__ import annotations

import numpy as np
import pytest

from sixfold.compile import build
from sixfold.compile.costs import OperatorCost, operator_costs
from sixfold.compile.plan import Plan
from sixfold.runtime.batch import Batch
from sixfold.runtime.native import NativeExecutor
from sixfold.runtime.profile import Recorder, Sizes, Steps, decodes, sum_up
from sixfold.weights.model_file import open_model
from tests.tiny_models import write_gguf


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    with open_model(write_gguf("gemma3", tmp_path_factory.mktemp("profile") / "m.gguf", "Q8_0")) as model:
        return build(model, cache=False)


def batch(*sequences: tuple[int, int]) -> Batch:
    """Of (start, count), each with four pages."""
    starts, counts = (np.array(values, np.int32) for values in zip(*sequences, strict=True))
    return Batch(
        np.arange(counts.sum(), dtype=np.int32), starts, counts, np.arange(4 * len(starts), dtype=np.int32),
        np.arange(len(starts) + 1, dtype=np.int32) * 4,
    )  # fmt: skip


def executor(plan: Plan, threads: int) -> NativeExecutor:
    return NativeExecutor(plan, num_pages=16, max_tokens=64, threads=threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_every_operator_is_timed_once_a_step_and_only_while_it_is_on(plan: Plan, threads: int) -> None:
    one = executor(plan, threads)
    one.forward(batch((0, 5)))
    assert not any(calls or seconds for _, _, calls, seconds in one.profiled())
    one.profile(True)
    for _ in range(3):
        one.forward(batch((0, 5)))
        one.logits(np.array([4], np.int32))
    one.profile(False)
    one.forward(batch((0, 5)))
    times = one.profiled()
    assert [(section, index) for section, index, _, _ in times] == [(c.section, c.index) for c in operator_costs(plan)]
    assert all(calls == 3 and seconds > 0 for _, _, calls, seconds in times)
    assert not any(calls for _, _, calls, _ in one.profiled()), "what was handed out begins anew"


def test_a_timed_step_gives_the_same_bits(plan: Plan) -> None:
    one = executor(plan, 2)
    rows = np.arange(5, dtype=np.int32)
    one.forward(batch((0, 5)))
    plain = one.logits(rows).copy()
    one.profile(True)
    one.forward(batch((0, 5)))
    assert (one.logits(rows) == plain).all()


def test_a_recorder_notes_the_steps_it_is_asked_for(plan: Plan) -> None:
    recorder = Recorder(executor(plan, 1), decodes)
    recorder.forward(batch((0, 7), (0, 1)))
    recorder.logits(np.array([7], np.int32))
    assert not recorder.noting and len(recorder.steps) == 0
    recorder.forward(batch((7, 1), (1, 1)))
    recorder.logits(np.array([0, 1], np.int32))
    assert recorder.noting and len(recorder.steps) == 1 and recorder.steps.rows == 2
    inside = recorder.steps.seconds
    totals = {total.kind: total for total in recorder.totals()}
    assert totals["attention"].calls == totals["attention"].operators
    assert 0 < sum(total.seconds for total in totals.values()) <= inside
    assert len(recorder.steps) == 0


def test_keys_are_read_once_a_sequence_and_meet_every_row() -> None:
    steps = Steps([np.array([0, 9], np.int32)], [np.array([3, 1], np.int32)], [2])
    assert steps.keys(0) == (3 + 10, 1 + 2 + 3 + 10)
    assert steps.keys(2) == (3 + 2, 1 + 2 + 2 + 2)


def test_totals_are_work_times_rows() -> None:
    steps = Steps([np.array([4], np.int32), np.array([5], np.int32)], [np.ones(1, np.int32)] * 2, [1, 1])
    costs = [
        OperatorCost("embed", 0, 0, 0, 7, 0, True, 0),
        OperatorCost("matmul", 0, 1, 1000, 0, 50, True, 0),
        OperatorCost("attention", 0, 2, 0, 0, 0, False, 0),
        OperatorCost("matmul", 0, 3, 500, 0, 20, False, 0),
        OperatorCost("logits", 1, 0, 900, 0, 30, False, 0),
    ]
    times = [(0, 0, 2, 0.25), (0, 1, 2, 1.0), (0, 2, 2, 2.0), (0, 3, 2, 0.5), (1, 0, 2, 4.0)]
    totals = {total.kind: total for total in sum_up(costs, times, steps, Sizes(4, 2, 8, ("f16",)))}
    assert totals["embed"].weight_bytes == 14
    matmul = totals["matmul"]
    assert (matmul.operators, matmul.calls, matmul.seconds, matmul.weight_bytes) == (2, 4, 1.5, 3000)
    assert (matmul.integer_macs, matmul.float_macs) == (100, 40)
    assert totals["logits"].float_macs == 60
    # contexts of 5 and 6 keys; a key and a value of float16, 2 KV heads of 8
    assert totals["attention"].kv_bytes == 11 * 2 * 2 * 2 * 8
    assert totals["attention"].float_macs == 11 * 2 * 4 * 8
