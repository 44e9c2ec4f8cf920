"""Tiny models to run commands on, a store of one's own, and a way to run commands in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sixfold.cli import app
from tests.tiny_models import write_gguf


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, and no settings from whoever runs the tests."""
    directory = tmp_path / "home"
    monkeypatch.setenv("SIXFOLD_HOME", str(directory))
    monkeypatch.chdir(tmp_path)
    return directory


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Context of 256 tokens, with a chat template."""
    return str(write_gguf("qwen2", tmp_path_factory.mktemp("chat") / "chat.gguf", "Q4_1"))


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its heads have 32 elements, as int4 KV needs."""
    return str(write_gguf("llama-wide", tmp_path_factory.mktemp("wide") / "wide.gguf", "Q4_0"))


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Adds BOS, has no chat template."""
    return str(write_gguf("llama", tmp_path_factory.mktemp("base") / "base.gguf", "Q8_0"))


@pytest.fixture
def sixfold() -> Callable[..., Result]:
    """``sixfold("show", model)``: runs a command and gives output and exit code; a bug of ours comes out as it is."""

    def invoke(*arguments: object, input: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=input, catch_exceptions=False)

    return invoke


@pytest.fixture
def sixfold_json(sixfold: Callable[..., Result]) -> Callable[..., Any]:
    """The object that a command with ``--json`` prints as the only line on stdout."""

    def invoke(*arguments: object) -> Any:
        result = sixfold(*arguments, "--json")
        assert result.exit_code == 0, result.output
        (line,) = result.stdout.splitlines()
        return json.loads(line)

    return invoke
