"""A server of our own as a child process, for a benchmark.

Owns: its start and its end. Must not know: how it is asked.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sixfold import config
from sixfold.errors import ConfigError

START_SECONDS = 600.0  # the first start may compile a plan
STOP_SECONDS = 40.0
POLL_SECONDS = 0.01  # also how exactly a start is timed


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str
    pid: int
    seconds: float  # from the start of the process to its first healthy answer


@contextlib.contextmanager
def serving(model: str, arguments: Sequence[str] = (), changes: Mapping[str, str] | None = None) -> Iterator[Running]:
    """``sixfold serve MODEL`` on a free port; given when it answers, and stopped in the end.

    ``changes``: of the environment. Raises ConfigError with what the server said if it does not come up.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "sixfold", "serve", model, "--port", str(port), *arguments]
    with tempfile.TemporaryFile() as said:
        environment = config.child_environment(**(changes or {}))
        began = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment)
        try:
            if not _answers(url, process):
                said.seek(0)
                lines = said.read().decode("utf-8", "replace").strip().splitlines()
                raise ConfigError(
                    f"{model} could not be served", cause="; ".join(lines[-3:]) or "it said nothing",
                    remedy=f"Try: sixfold serve {model}",
                )  # fmt: skip
            yield Running(url, process.pid, time.perf_counter() - began)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_SECONDS)
    return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
