"""The command as a process: how quickly it starts and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from sixfold.cli import stored
from sixfold.cli.application import app
from tests.cli.names import COMMANDS

HEAVY = {"numpy", "rich", "httpx", "pydantic", "fastapi", "tokenizers", "jinja2", "huggingface_hub", "sixfold.store"}


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sixfold", *arguments], capture_output=True, text=True, **options)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, sixfold.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)


def test_help_lists_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0 and all(f"  {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "eval perplexity", "bench latency", "bench throughput"])
def test_every_command_explains_itself(sixfold, command: str) -> None:
    done = sixfold(*command.split(), "--help")
    assert done.exit_code == 0 and "Usage:" in done.stdout


def test_version(sixfold) -> None:
    assert sixfold("--version").stdout.startswith("sixfold 0.")


def test_a_users_mistake_is_one_message_without_a_traceback() -> None:
    done = run("show", "no-such-model")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("Error: No model is called 'no-such-model'") and "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr and "smollm2" in done.stderr


@pytest.mark.parametrize("arguments", [["bogus"], ["run"], ["serve", "--port", "x"], ["list", "--bogus"]])
def test_usage_errors_exit_with_2(sixfold, arguments: list[str]) -> None:
    done = sixfold(*arguments)
    assert done.exit_code == 2 and "Usage:" in done.stderr


def test_a_reader_that_goes_away_is_no_error(chat_model: str) -> None:
    command = [sys.executable, "-m", "sixfold", "show", chat_model, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_ctrl_c_ends_a_command_quietly() -> None:
    code = "import sys, sixfold.cli as c; sys.argv[1:] = ['run', 'smollm2', '-']; print('up', flush=True); c.main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"up\n"
        time.sleep(0.3)  # until it reads its standard input, which never comes
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read() == b"" and process.stdout.read() == b""


def test_ctrl_c_inside_a_command(sixfold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored.console, "print_json", lambda value: signal.raise_signal(signal.SIGINT))
    assert sixfold("list", "--json").exit_code == 130


def test_a_bug_of_ours_is_shown_whole(sixfold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored.console, "print_json", lambda value: {}["bug"])
    with pytest.raises(KeyError, match="bug"):
        sixfold("list", "--json")


def test_names_of_the_commands() -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert {*names, *(group.name for group in app.registered_groups)} == set(COMMANDS)
