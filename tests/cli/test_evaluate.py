from __future__ import annotations

from pathlib import Path

import pytest

TEXT = "The sea is wide and the sky is blue. "


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 12)
    return path


def test_native_and_reference_agree(sixfold_json, base_model: str, text: Path) -> None:
    native = sixfold_json("eval", "perplexity", base_model, "--text", text, "--ctx", 64)
    reference = sixfold_json("eval", "perplexity", base_model, "--text", text, "--ctx", 64, "--reference")
    assert native["tokens"] == reference["tokens"] == native["windows"] * 31
    assert native["ppl"] == pytest.approx(reference["ppl"], rel=0.02)


def test_text_output_and_max_windows(sixfold, base_model: str, text: Path) -> None:
    done = sixfold("eval", "perplexity", base_model, "--text", text, "--ctx", 64, "--max-windows", 1, "--isa", "scalar")
    assert done.exit_code == 0 and "over 31 tokens (1 windows of 64" in done.stdout


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"short", ["--ctx", "64"], "two windows take 128"),
        (b"\xff\xfe", ["--ctx", "64"], "not UTF-8 at byte 0"),
        (TEXT.encode() * 90, ["--ctx", "512"], "trained for 256"),
    ],
)
def test_mistakes(sixfold, base_model: str, tmp_path: Path, content: bytes, options: list[str], says: str) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    done = sixfold("eval", "perplexity", base_model, "--text", tmp_path / "t.txt", *options)
    assert done.exit_code == 1 and says in done.stderr


def test_a_text_that_is_not_there(sixfold, base_model: str) -> None:
    done = sixfold("eval", "perplexity", base_model, "--text", "absent.txt")
    assert done.exit_code == 1 and "absent.txt cannot be read" in done.stderr
