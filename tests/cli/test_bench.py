from __future__ import annotations

import pytest


def test_latency(sixfold_json, chat_model: str) -> None:
    shape = ("--prompt-tokens", "8,20", "--batch", "1,3", "--new-tokens", 4, "--repeats", 2)
    found = sixfold_json("bench", "latency", chat_model, *shape)
    assert [(r["prompt_tokens"], r["batch"]) for r in found["results"]] == [(8, 1), (8, 3), (20, 1), (20, 3)]
    assert all(value > 0 for result in found["results"] for value in result.values())
    assert found["machine"]["cores"] >= 1 and found["date"] and found["command"].startswith("sixfold")


def test_throughput_is_of_the_load_that_was_asked_for(sixfold_json, chat_model: str) -> None:
    shape = ("--requests", 5, "--prompt-tokens", "4,9", "--new-tokens", "2,6")
    one, two = (sixfold_json("bench", "throughput", chat_model, *shape)["results"] for _ in range(2))
    assert (one["prompt_tokens"], one["new_tokens"]) == (two["prompt_tokens"], two["new_tokens"])
    assert 20 <= one["prompt_tokens"] <= 45 and 10 <= one["new_tokens"] <= 30
    assert one["new_tokens_per_second"] == pytest.approx(one["new_tokens"] / one["seconds"])


def test_tables(sixfold, chat_model: str) -> None:
    shape = ("--prompt-tokens", 8, "--new-tokens", 2)
    assert "first token ms" in sixfold("bench", "latency", chat_model, *shape, "--batch", 1, "--repeats", 1).stdout
    assert "requests/s" in sixfold("bench", "throughput", chat_model, *shape, "--requests", 2).stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["latency", "--prompt-tokens", "300"], 1),
        (["latency", "--batch", "0"], 2),
        (["throughput", "--new-tokens", "9,2"], 2),
    ],
)
def test_mistakes(sixfold, chat_model: str, arguments: list[str], code: int) -> None:
    assert sixfold("bench", arguments[0], chat_model, *arguments[1:]).exit_code == code
