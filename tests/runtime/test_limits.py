"""The machine's limits and products with made-up weights: that they are measured, not how large they are."""

from __future__ import annotations

import numpy as np
import pytest

from sixfold import _native
from sixfold.compile.formats import FORMATS
from sixfold.compile.plan import matrix_record
from sixfold.runtime import limits, products


@pytest.mark.parametrize("threads", [1, 2])
def test_each_loop_that_runs_here_gives_a_rate(threads: int) -> None:
    assert limits.available()[-1] == "scalar"
    for isa in limits.available():
        assert 1e8 < _native.limit_integer_macs(isa, threads) < 1e14
        assert 1e8 < _native.limit_float_macs(isa, threads) < 1e14
    for size in (1, 4096, (3 << 20) + 17):
        rates = _native.limit_read_bandwidth(size, threads, 2)
        assert len(rates) == 2 and all(1e7 < rate < 1e14 for rate in rates)


def test_what_can_not_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="sse9"):
        _native.limit_integer_macs("sse9", 1)
    with pytest.raises(ValueError, match="threads"):
        _native.limit_float_macs("scalar", 0)
    with pytest.raises(ValueError, match="at least 1"):
        _native.limit_read_bandwidth(0, 1, 1)
    with pytest.raises(ValueError, match="out of range"):
        _native.Product(matrix_record(16, 32, FORMATS["F32"]), "scalar", 2, 1).run(3, 1)


def test_a_meter_gives_medians_of_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([5.0, 1.0, 3.0])
    monkeypatch.setattr(limits._native, "limit_read_bandwidth", lambda size, threads, repeats: [float(size)])
    monkeypatch.setattr(limits._native, "limit_float_macs", lambda isa, threads: 7.0)
    meter = limits.Meter(2, weights=1000)
    monkeypatch.setattr(limits, "available", lambda: ["scalar"])
    meter = limits.Meter(2, weights=1000)
    monkeypatch.setattr(limits._native, "limit_integer_macs", lambda isa, threads: next(rates))
    for _ in range(3):
        meter.round()
    found = meter.limits()
    assert found.best_integer == 3.0 and found.best_float == 7.0
    assert found.bandwidth == 1000 and found.ram_bytes == limits.RAM_BYTES
    assert found.noise == pytest.approx(5 / 3)
    assert found.cache_bytes == 2 * limits.CACHE_BYTES


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q6_K", "Q8_0", "Q2_K"])
@pytest.mark.parametrize("isa", ["scalar", "avx2", "auto"])
def test_products_of_every_kind_of_format(kind: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "BUFFER_BYTES", 1 << 16)
    monkeypatch.setattr(products, "RUN_MACS", 1e5)
    times = products.time_products(FORMATS[kind], 40, 256, (1, 3, 200), isa=isa, threads=2, rounds=2)
    assert [time.rows for time in times] == [1, 3, 200]
    assert [time.macs for time in times] == [40 * 256, 3 * 40 * 256, 200 * 40 * 256]
    assert all(np.isfinite(time.seconds) and time.seconds > 0 for time in times)
    one = _native.Product(matrix_record(40, 256, FORMATS[kind]), isa, 1, 1)
    assert one.tiles == 3 and {time.weight_bytes for time in times} == {3 * one.tile_bytes}
