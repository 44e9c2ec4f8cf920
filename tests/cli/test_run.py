from __future__ import annotations

import json
from pathlib import Path

import pytest

GREEDY = ("--temperature", 0, "--max-tokens", 5)


def test_text_and_json_agree(sixfold, chat_model: str) -> None:
    text = sixfold("run", chat_model, "hello", *GREEDY)
    assert text.exit_code == 0
    done = sixfold("run", chat_model, "hello", *GREEDY, "--json")
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["text"] == text.stdout.removesuffix("\n") and answer["model"] == chat_model
    assert answer["completion_tokens"] == 5 and answer["finish_reason"] == "length" and answer["ttft_ms"] > 0
    assert answer["prompt_tokens"] > len("hello")  # the template's part


@pytest.mark.parametrize("argument", [(), ("-",)])
def test_the_prompt_may_come_from_a_pipe(sixfold, chat_model: str, argument: tuple[str, ...]) -> None:
    given = sixfold("run", chat_model, "hello", *GREEDY)
    assert sixfold("run", chat_model, *argument, *GREEDY, input="hello\n").stdout == given.stdout


def test_the_prefix_cache_can_be_switched_off(sixfold, chat_model: str) -> None:
    with_it, without = (sixfold("run", chat_model, "hi", *GREEDY, *more) for more in ((), ("--no-prefix-cache",)))
    assert with_it.exit_code == without.exit_code == 0 and with_it.stdout == without.stdout


def test_the_same_seed_gives_the_same_answer(sixfold, chat_model: str) -> None:
    answers = [sixfold("run", chat_model, "hi", "--max-tokens", 8, "--seed", seed).stdout for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_a_base_model_goes_on_with_the_text_and_says_so(sixfold, base_model: str) -> None:
    silent = sixfold("run", base_model, "once", "--raw", *GREEDY)
    told = sixfold("run", base_model, "once", *GREEDY)
    assert told.stdout == silent.stdout and "base model" in told.stderr and "base model" not in silent.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["hi", "--temperature", "-1"], 1, "temperature=-1.0"),
        (["hi", "--isa", "mmx"], 1, "scalar"),
        (["hi", "--kv-memory", "1"], 1, "KV memory"),
        (["hi", "--kv-memory", "x"], 2, "512M"),
        (["hi", "--raw", "--system", "s"], 2, "--raw"),
        (["word " * 300], 1, "256"),
        (["hi", "--chat-template", "absent.jinja"], 1, "absent.jinja"),
        (["hi", "--max-model-len", "100000"], 1, "max_model_len"),
    ],
)
def test_mistakes(sixfold, chat_model: str, arguments: list[str], code: int, says: str) -> None:
    done = sixfold("run", chat_model, *arguments)
    assert done.exit_code == code and says in done.stderr and done.stdout == ""


def test_a_system_message_on_a_base_model_is_refused(sixfold, base_model: str) -> None:
    done = sixfold("run", base_model, "hi", "--system", "s")
    assert done.exit_code == 1 and "no chat template" in done.stderr and "--raw" in done.stderr


def test_a_template_of_ones_own(sixfold, base_model: str, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    own = sixfold("run", base_model, "once", "--chat-template", tmp_path / "own.jinja", *GREEDY)
    assert own.exit_code == 0 and own.stdout == sixfold("run", base_model, "once", "--raw", *GREEDY).stdout


@pytest.mark.model
def test_smollm2_answers(sixfold, smollm2_path: Path) -> None:
    done = sixfold("run", smollm2_path, "The capital of France is", "--raw", "--temperature", 0, "--max-tokens", 3)
    assert "Paris" in done.stdout
