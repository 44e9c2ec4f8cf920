from __future__ import annotations

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from sixfold.cli import console
from sixfold.cli.options import byte_count, numbers


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("1000", 1000), ("1k", 1024), ("512M", 512 << 20), ("1.5GiB", 3 << 29), ("4 mb", 4 << 20)],
)
def test_sizes(text: str, count: int) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "G", "-1", "1x", "1GG", "1e9", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="512M"):
        byte_count(text)


@given(st.integers(0, 1 << 50))
def test_plain_bytes_stay_what_they_are(count: int) -> None:
    assert byte_count(str(count)) == count


@pytest.mark.parametrize("text", ["", "0", "1,,2", "a", "-1", "1.5"])
def test_what_is_no_list_of_numbers(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        numbers(text)
    assert numbers("1, 20") == [1, 20]


def test_sizes_in_words() -> None:
    sizes = {0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 98362432: "93.8 MiB", 5 << 40: "5.0 TiB"}
    assert [console.size(count) for count in sizes] == list(sizes.values())
    assert [console.quantity(n) for n in (7, 49152, 134515008, 7.62e9)] == ["7", "49.2 K", "135 M", "7.62 B"]


def test_a_model_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert console.printable("a\x1b[2Jb\tc\nd\x9be") == "a\N{REPLACEMENT CHARACTER}[2Jb\tc\nd\N{REPLACEMENT CHARACTER}e"
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert console.printable("a\x1b[2J") == "a\x1b[2J"
