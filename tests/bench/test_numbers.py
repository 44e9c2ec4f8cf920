"""Percentiles, fits and shares of limits: the arithmetic of results."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.bench import profile
from sixfold.bench.fit import fit
from sixfold.bench.kernels import described, formats_named, types_of, whole_columns
from sixfold.bench.percentiles import milliseconds, percentile
from sixfold.compile.formats import FORMATS
from sixfold.runtime.limits import Limits
from sixfold.runtime.products import ProductTime
from sixfold.runtime.profile import KindTotal

LIMITS = Limits(2, 10e9, 100e9, 20e9, {"scalar": 1e9, "avx2": 100e9}, {"scalar": 50e9})


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(0, 100))
def test_percentiles_are_numpys(values: list[float], rank: int) -> None:
    assert percentile(values, rank) == pytest.approx(float(np.percentile(values, rank)))


def test_nothing_measured_has_no_percentiles() -> None:
    assert math.isnan(percentile([], 50)) and milliseconds([]) == {"p50": None, "p95": None, "p99": None}


def test_a_line_is_found_again() -> None:
    line = fit([1, 2, 8, 128], [5.5, 8.0, 23.0, 323.0])
    assert line is not None and (line.slope, line.base) == pytest.approx((2.5, 3.0))
    assert line.largest_residual < 1e-9 and line.at(4) == pytest.approx(13)


def test_an_exponent_is_found_again_and_a_line_through_it_is_off() -> None:
    square = fit([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0])
    assert square is not None and square.exponent == pytest.approx(2) and square.largest_residual > 0.2


def test_two_sizes_are_needed() -> None:
    assert fit([4, 4], [1.0, 2.0]) is None and fit([], []) is None


def test_a_share_is_the_least_time_over_the_time_it_took() -> None:
    memory = KindTotal("attention", 1, 2, seconds=1.0, kv_bytes=int(5e9), weight_bytes=int(5e9), float_macs=int(5e9))
    assert profile.bound(memory, LIMITS) == (pytest.approx(0.5), "memory")
    whole = KindTotal("matmul", 1, 2, seconds=2.0, weight_bytes=int(2e9), integer_macs=int(100e9))
    assert profile.bound(whole, LIMITS) == (pytest.approx(1.0), "int8 MACs")
    found = profile.describe([memory, KindTotal("norm", 1, 2, 0.5), whole], 2, 4, 5.0, 4.0, LIMITS)
    assert [one["operator"] for one in found["operators"]] == ["matmul", "attention", "norm"]
    assert [one["share_of_limit"] for one in found["operators"]] == [pytest.approx(0.5), pytest.approx(0.5), None]
    assert found["operators"][0]["ms_per_step"] == 1000 and found["operators"][0]["gmac_per_second"] == 50
    assert (found["rows_per_step"], found["ms_per_step"]) == (2, 2500)
    assert (found["between_operators_ms"], found["outside_executor_ms"]) == (pytest.approx(250), 500)
    assert found["share_of_limit"] == pytest.approx(1.5 / 5)


def test_a_product_is_bound_by_the_slower_of_reading_and_multiplying() -> None:
    one = described((16, 32), FORMATS["Q8_0"], ProductTime(1, 2.0, int(20e9), int(10e9)), LIMITS)
    assert one["bound"] == "memory" and one["share_of_limit"] == pytest.approx(0.5)
    many = described((16, 32), FORMATS["F32"], ProductTime(9, 4.0, int(20e9), int(100e9)), LIMITS)
    assert many["bound"] == "float MACs" and many["share_of_limit"] == pytest.approx(0.5)


def test_types_that_are_packed_alike_are_measured_once() -> None:
    assert formats_named(["Q8_0", "IQ4_NL", "F16"]) == [FORMATS["Q8_0"], FORMATS["F16"]]
    assert types_of(FORMATS["Q8_0"]) == ["Q8_0", "IQ4_NL"]


def test_k_quants_have_whole_super_blocks() -> None:
    assert [whole_columns(576, FORMATS[kind]) for kind in ("Q4_K", "Q4_0", "F32")] == [768, 576, 576]
