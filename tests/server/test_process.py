"""Signals to a server that runs as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from sixfold.config import ServerConfig
from sixfold.errors import ConfigError
from sixfold.server.serve import bind

ROOT = Path(__file__).parents[2]
ASK = {"prompt": "a", "stream": True}


@contextmanager
def process(drain: float, delay: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "tests.server.process", str(drain), str(delay)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server, server.stdout.readline().strip()
        finally:
            server.kill()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish(sign: signal.Signals) -> None:
    with process(drain=10, delay=0.05) as (server, url), httpx.stream("POST", f"{url}/v1/completions", json=ASK) as got:
        lines = got.iter_lines()
        next(lines)
        server.send_signal(sign)
        time.sleep(0.1)
        assert httpx.get(f"{url}/ready").status_code == 503
        assert [line for line in lines if line][-1] == "data: [DONE]"
        out, _ = server.communicate(timeout=10)
        assert server.returncode == 0 and out == "ended\n"


def test_a_second_signal_ends_it_at_once() -> None:
    with process(drain=60, delay=5) as (server, url), httpx.stream("POST", f"{url}/v1/completions", json=ASK) as got:
        lines = got.iter_lines()  # kept: dropping it would close the response
        next(lines)
        server.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert server.poll() is None
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=2) == 130


def test_an_idle_server_ends_quickly() -> None:
    with process(drain=60, delay=0) as (server, _):
        began = time.monotonic()
        server.terminate()
        assert server.wait(timeout=5) == 0 and time.monotonic() - began < 2


def test_a_taken_port_is_said_before_anything_is_loaded() -> None:
    listener = bind(ServerConfig(port=0))
    listener.listen()
    with listener, pytest.raises(ConfigError, match="Cannot listen on"):
        bind(ServerConfig(port=listener.getsockname()[1]))
