from __future__ import annotations

from pathlib import Path

import pytest

from sixfold import store
from sixfold.cli import fetch
from sixfold.store import License, ResolvedModel, StoredModel

MODEL = StoredModel("tiny", Path("/models/tiny.gguf"), "registry", "MIT", True, 3 << 20)


def test_an_empty_store_says_what_can_be_pulled(sixfold, sixfold_json) -> None:
    done = sixfold("list")
    assert done.exit_code == 0 and "No models" in done.stdout and "smollm2" in done.stdout
    listed = sixfold_json("list")
    assert listed["models"] == [] and {entry["name"] for entry in listed["available"]} >= {"smollm2", "gemma3-270m"}


def test_a_pulled_model_is_listed(sixfold, sixfold_json, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "list_models", lambda: [MODEL])
    assert "3.0 MiB" in sixfold("list").stdout
    (model,) = sixfold_json("list")["models"]
    assert model == {"name": "tiny", "size": 3 << 20, "license": "MIT", "source": "registry", "path": str(MODEL.path)}


def test_rm_asks_and_needs_someone_to_ask(sixfold, monkeypatch: pytest.MonkeyPatch) -> None:
    removed = []
    monkeypatch.setattr(store, "remove", lambda name: removed.append(name) or 1024)
    done = sixfold("rm", "tiny")
    assert done.exit_code == 2 and "--yes" in done.stderr and not removed
    done = sixfold("rm", "tiny", "--yes")
    assert done.exit_code == 0 and removed == ["tiny"] and "1.0 KiB" in done.stdout


def test_rm_of_what_is_not_there(sixfold) -> None:
    done = sixfold("rm", "smollm2", "--yes")
    assert done.exit_code == 1 and "is not on this machine" in done.stderr


def test_pull_of_a_path_only_says_where_it_is(sixfold, chat_model: str) -> None:
    assert chat_model in sixfold("pull", chat_model).stdout


def test_a_licence_is_not_accepted_where_nobody_can_be_asked(sixfold) -> None:
    done = sixfold("pull", "gemma3-270m")
    assert done.exit_code == 1 and "--accept-license" in done.stderr and "gemma/terms" in done.stderr


@pytest.mark.parametrize(("answer", "accepted"), [(True, True), (False, False)])
def test_a_licence_is_shown_and_asked_about(monkeypatch: pytest.MonkeyPatch, answer: bool, accepted: bool) -> None:
    given = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(fetch.typer, "confirm", lambda question, err: answer)

    def pull(name: str, progress, accept_license: bool | License) -> ResolvedModel:
        progress("Downloading", 1, 2)
        given.append(accept_license)
        return MODEL

    monkeypatch.setattr(store, "pull", pull)
    assert fetch.fetch("gemma3-270m") is MODEL
    assert given == [accepted]
    fetch.fetch("gemma3-270m", accept_license=True)
    assert given[1] is True
