"""The chat loop on a scripted backend, and the whole command over a pipe and a terminal."""

from __future__ import annotations

import builtins
import os
import pty
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sixfold.cli.answer import Answer
from sixfold.cli.chat import Chat
from sixfold.cli.conversation import Conversation
from sixfold.errors import ContextLengthError, SixfoldError

Reply = str | Exception | type[BaseException] | tuple[str, str]


class Scripted:
    """Answers with what it is told: a text, a text and its finish reason, a text and then Ctrl-C, or an error."""

    name = "scripted"
    context: int | None = 100

    def __init__(self, *replies: Reply | tuple[str, type[BaseException]]) -> None:
        self.replies = list(replies)
        self.asked: list[list[dict[str, str]]] = []
        self.settings: list[dict[str, Any]] = []

    def chat(self, messages: Sequence[dict[str, str]], settings: Mapping[str, Any], answer: Answer) -> None:
        self.asked.append(list(messages))
        self.settings.append(dict(settings))
        reply = self.replies.pop(0)
        text, end = reply if isinstance(reply, tuple) else (reply, "stop")
        if not isinstance(text, str):
            raise text
        answer.prompt_tokens = 10
        answer.add(text, len(text))
        if not isinstance(end, str):
            raise end
        answer.finish_reason = end

    def close(self) -> None:
        pass


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Chat]:
    """Runs a chat at a pretended terminal: each line is typed, an exception class is a key (Ctrl-C)."""

    def run(backend: Scripted, *lines: str | type[BaseException], terminal: bool = True) -> Chat:
        typed = iter(lines)

        def read(prompt: str) -> str:
            line = next(typed, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(builtins, "input", read)
        monkeypatch.setattr("sys.stdin.isatty", lambda: terminal, raising=False)
        chat = Chat(backend, Conversation())
        chat.run()
        return chat

    return run


def contents(chat: Chat) -> list[str]:
    return [message["content"] for message in chat.conversation.messages]


def test_every_question_carries_the_whole_conversation(talk, capsys: pytest.CaptureFixture[str]) -> None:
    backend = Scripted("one", "two")
    chat = talk(backend, "a", "", "//b")
    assert [message["content"] for message in backend.asked[1]] == ["a", "one", "/b"]
    assert contents(chat) == ["a", "one", "/b", "two"]
    out, err = capsys.readouterr()
    assert out == "one\ntwo\n" and "3 tokens" in err and "context 13/100" in err and "first after" in err


def test_ctrl_c_keeps_what_was_said(talk, capsys: pytest.CaptureFixture[str]) -> None:
    chat = talk(Scripted(("half", KeyboardInterrupt), KeyboardInterrupt, "whole"), "a", "b", KeyboardInterrupt, "c")
    assert contents(chat) == ["a", "half", "c", "whole"]
    assert "stopped" in capsys.readouterr().err


def test_an_error_costs_the_question_only(talk, capsys: pytest.CaptureFixture[str]) -> None:
    chat = talk(Scripted("one", SixfoldError("It broke"), "three"), "a", "b", "c")
    assert contents(chat) == ["a", "one", "c", "three"]
    assert "Error: It broke." in capsys.readouterr().err


def test_too_long_is_an_error_with_advice_and_nothing_is_dropped(talk, capsys: pytest.CaptureFixture[str]) -> None:
    too_long = ContextLengthError("The prompt of 101 tokens does not fit", cause="the context is 100")
    chat = talk(Scripted("one", too_long), "a", "b")
    assert contents(chat) == ["a", "one"]
    err = capsys.readouterr().err
    assert "101 tokens" in err and "/undo" in err and "/clear" in err and "--max-model-len" in err


def test_a_cut_answer_says_why(talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk(Scripted(("1234", "length"), ("12", "length")), "/set max_tokens 4", "a", "/set max_tokens 9", "b")
    err = capsys.readouterr().err
    assert "cut at max_tokens=4" in err and "the context is full" in err


def test_over_a_pipe_an_error_ends_it(talk) -> None:
    with pytest.raises(SixfoldError, match="It broke"):
        talk(Scripted(SixfoldError("It broke")), "a", terminal=False)
    with pytest.raises(KeyboardInterrupt):
        talk(Scripted(KeyboardInterrupt), "a", terminal=False)


def test_commands(talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = Scripted("one", "again", "poem", "last")
    file = tmp_path / "chat.json"
    chat = talk(
        backend,
        "/system Be short.", "/set temperature 0", "a", "/retry", f"/save {file}", "/undo", "/undo", f"/load {file}",
        "/history", "/stats", "/set", "/multi", "line 1", "line 2", "/end", "/clear", "/system none", "/help",
        "b", "/exit", "never",
    )  # fmt: skip
    assert [[m["content"] for m in asked] for asked in backend.asked] == [
        ["Be short.", "a"],
        ["Be short.", "a"],
        ["Be short.", "a", "again", "line 1\nline 2"],
        ["b"],
    ]
    assert all(settings["temperature"] == 0.0 for settings in backend.settings)
    assert contents(chat) == ["b", "last"]
    err = capsys.readouterr().err
    for words in ("nothing to take back", "Loaded 2 messages", "[assistant] again", "answers    2", "top_p", "/retry"):
        assert words in err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/bogus", "no command /bogus"),
        ("/ret", "Did you mean /retry"),
        ("/retry", "no question"),
        ("/save", "needs a file"),
        ("/load absent", "cannot be read"),
        ("/set temperature", "has no value"),
        ("/set top_p 7", "top_p=7.0"),
    ],
)
def test_mistaken_commands_change_nothing(talk, capsys: pytest.CaptureFixture[str], line: str, says: str) -> None:
    chat = talk(Scripted(), line)
    assert says in capsys.readouterr().err and chat.conversation == Conversation()


def test_ctrl_c_forgets_several_lines(talk) -> None:
    backend = Scripted("one")
    talk(backend, "/multi", "line 1", KeyboardInterrupt, "a")
    assert [message["content"] for message in backend.asked[0]] == ["a"]


def test_the_command_over_a_pipe(sixfold, chat_model: str) -> None:
    script = "/set max_tokens 4\n/set seed 1\nhello\n/stats\n"
    done = sixfold("chat", chat_model, "--system", "s", input=script)
    assert done.exit_code == 0 and done.stdout.strip() and "4 tokens" in done.stderr and "/256" in done.stderr


def test_the_second_turn_says_what_was_cached(sixfold, chat_model: str) -> None:
    script = "/set max_tokens 4\n/set seed 1\nhello\nand then\n"
    assert "prompt tokens cached" in sixfold("chat", chat_model, input=script).stderr
    assert "cached" not in sixfold("chat", chat_model, "--no-prefix-cache", input=script).stderr


def test_a_base_model_is_refused(sixfold, base_model: str) -> None:
    done = sixfold("chat", base_model)
    assert done.exit_code == 1 and "no chat template" in done.stderr


def test_a_server_decides_how_its_model_runs(sixfold) -> None:
    assert sixfold("chat", "--url", "http://127.0.0.1:9", "--threads", 1).exit_code == 2
    assert sixfold("chat", "--url", "http://127.0.0.1:9", "--no-prefix-cache").exit_code == 2
    done = sixfold("chat", "--url", "http://127.0.0.1:9")
    assert done.exit_code == 1 and "Nothing answers at http://127.0.0.1:9" in done.stderr


def test_a_terminal_with_history(chat_model: str, home: Path) -> None:
    """The real command behind a pseudo-terminal: Ctrl-C during an answer, Ctrl-D to leave."""
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-m", "sixfold", "chat", chat_model])
    seen = b""

    def wait_for(words: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 20
        while words not in seen and time.monotonic() < deadline:
            seen += os.read(terminal, 4096)
        assert words in seen, seen
        seen = seen.partition(words)[2]

    wait_for(b"> ")
    os.write(terminal, b"/set ignore_eos on\n")
    wait_for(b"> ")
    os.write(terminal, b"/undo\n")
    wait_for(b"nothing to take back")
    wait_for(b"> ")
    os.write(terminal, b"\x03")
    wait_for(b"Ctrl-D or /exit leaves")
    wait_for(b"> ")
    os.write(terminal, b"\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    os.close(terminal)
    assert "/undo" in (home / "chat_history").read_text()
