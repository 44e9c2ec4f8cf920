"""A Redis of a test's own, on a socket in its directory: Debian's redis-server, which ``make test`` installs."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="no redis-server (Debian or Ubuntu: sudo apt-get install redis-server)"
)


class RedisServer:
    def __init__(self, directory: Path, *options: str) -> None:
        self._socket = directory / "redis.sock"
        self._command = [
            "redis-server", "--port", "0", "--unixsocket", str(self._socket), "--dir", str(directory), "--save", "",
            "--appendonly", "no", *options,
        ]  # fmt: skip
        self.url = f"unix://{self._socket}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                with contextlib.closing(self.client()) as client:
                    client.ping()
                return
            except redis.AuthenticationError:
                return
            except redis.ConnectionError:
                assert time.monotonic() < deadline and self.process.poll() is None, "redis-server does not start"
                time.sleep(0.01)

    def client(self, patient: bool = False) -> Any:
        """``patient``: comes back when its connection is cut."""
        retry = Retry(ConstantBackoff(0.01), 20 if patient else 0)
        return redis.Redis.from_url(self.url, retry=retry, retry_on_error=[redis.ConnectionError])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def redis_server(directory: Path, *options: str) -> Iterator[RedisServer]:
    directory.mkdir(exist_ok=True)
    server = RedisServer(directory, *options)
    try:
        yield server
    finally:
        server.kill()
