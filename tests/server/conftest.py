"""A server around the fake engine: in process for answers, on a real socket for everything that needs one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from sixfold.config import ServerConfig
from sixfold.server.app import create_app
from sixfold.server.serve import Server, bind, build_server
from tests.server.fake_engine import FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(engine, ServerConfig(max_n=4, max_prompts=5, max_stop=4), aliases=("fake-alias",))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


class LiveServer:
    def __init__(self, engine: FakeEngine, config: ServerConfig) -> None:
        self.engine = engine
        self.app = create_app(engine, config)  # type: ignore[arg-type]
        self._listener = bind(config)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server: Server = build_server(self.app, config, log_level="critical")
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.server.serve([self._listener]))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def begin_drain(self) -> None:
        self.loop.call_soon_threadsafe(self.server.begin_drain)

    def __enter__(self) -> LiveServer:
        self._thread.start()
        while not self.server.started:
            self._thread.join(0.005)
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._listener.close()


@pytest.fixture
def serve(engine: FakeEngine) -> Iterator[Callable[..., Any]]:
    """``with serve(api_key=...) as live:`` a server on a free loopback port, in a thread of its own."""

    @contextmanager
    def start(**settings: Any) -> Iterator[LiveServer]:
        with LiveServer(engine, ServerConfig(port=0, **settings)) as live:
            yield live

    yield start
