from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from sixfold.bench.trace import Arrival, draw, read, scaled
from sixfold.errors import ConfigError

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def test_a_trace_is_read_in_order_of_time(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(HEAD + "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:46.9951690,374,44\n" + "x" * 9)
    assert read(file, 2) == [Arrival(0.0, 374, 44), Arrival(4.0, 396, 109)]


@pytest.mark.parametrize(
    "text",
    ["", HEAD, HEAD + "now,1,2\n", HEAD + "2023-11-16 18:15:50,1,x\n", HEAD + "2023-11-16 18:15:50,0,1\n", "a\n1\n"],
)
def test_what_is_no_trace(tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match="is no trace"):
        read(file, 10)
    with pytest.raises(ConfigError, match="Cannot read"):
        read(tmp_path / "none.csv", 10)


def test_a_drawn_trace_has_the_shape_of_conversations() -> None:
    trace = draw(5000, 1)
    assert trace == draw(5000, 1) != draw(5000, 2)
    assert 900 < statistics.mean(one.prompt for one in trace) < 1400
    assert 150 < statistics.mean(one.answer for one in trace) < 280
    assert 4 < len(trace) / trace[-1].seconds < 7 and trace[0].seconds == 0


def test_a_trace_is_scaled_by_one_factor_and_only_if_it_must_be() -> None:
    trace = [Arrival(0.0, 100, 20), Arrival(1.0, 1500, 500), Arrival(2.0, 1, 1)]
    assert scaled(trace, 2000) == trace
    assert scaled(trace, 200) == [Arrival(0.0, 10, 2), Arrival(1.0, 150, 50), Arrival(2.0, 1, 1)]
