"""The server as a process: sockets, signals, and an end that lets running requests finish.

Owns: the order of shutting down. Must not know: routes or requests.

The first SIGTERM or SIGINT starts the drain: /ready says no, new requests get 503 with Retry-After on the still open
socket, running ones go on for up to ``drain_seconds`` and are then aborted with an error that says why. Then the socket
closes. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from sixfold import store
from sixfold.config import EngineConfig, ServerConfig
from sixfold.engine.async_engine import AsyncEngine
from sixfold.engine.chat_template import ChatTemplate
from sixfold.errors import ConfigError
from sixfold.metrics import Metrics
from sixfold.server.app import create_app
from sixfold.server.state import ServerState
from sixfold.weights.model_file import open_model

_log = logging.getLogger("sixfold.server")

# How long the last responses may take to reach their clients once everything is finished or aborted.
_FLUSH_SECONDS = 5

# When the executor has finished a step, the engine thread waits at most this long for the event loop to let go of the
# interpreter. Python's own 5 ms are two steps of a small model; a tenth of it costs nothing measurable.
_SWITCH_SECONDS = 0.0005


class Server(uvicorn.Server):
    """uvicorn's server, which would close the socket first, with our drain before it."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self._state = state
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            os._exit(128 + sig)  # asked twice: no flush, no wait for a thread that may be what hangs
        if self._loop is None:
            self.should_exit = True
            return
        self._loop.call_soon_threadsafe(self.begin_drain)

    def begin_drain(self) -> None:
        """Idempotent; on the event loop."""
        if self._drain is None:
            self._drain = asyncio.create_task(self._drain_then_exit())

    async def _drain_then_exit(self) -> None:
        state, seconds = self._state, self._state.config.drain_seconds
        state.drain_deadline = time.monotonic() + seconds
        _log.info("Draining: up to %.0f s for %d running requests; a second signal ends at once", seconds, state.active)
        try:
            if not await state.engine.drain(seconds):
                _log.warning("Aborted the requests that were still running after %.0f s", seconds)
            flushed = time.monotonic() + _FLUSH_SECONDS
            while state.active and time.monotonic() < flushed:
                await asyncio.sleep(0.02)
        finally:
            self.should_exit = True


def build_server(app: FastAPI, config: ServerConfig, **options: Any) -> Server:
    """``options`` go to ``uvicorn.Config``."""
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        http="h11",  # the implementation that bounds headers while they arrive
        # The guard refuses large headers with an explanation; this only stops what never ends.
        h11_max_incomplete_event_size=2 * config.max_header_bytes + 4096,
        ws="none",
        lifespan="on",
        access_log=False,  # ours has the request id
        server_header=False,
        timeout_graceful_shutdown=_FLUSH_SECONDS,
        **{"log_level": "warning", **options},
    )
    return Server(settings, app.state.server)


def bind(config: ServerConfig) -> socket.socket:
    """The listening socket, bound before the model is loaded, so that a taken port is an error within a second."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    # Connections inherit it. asyncio sets it only on sockets whose protocol is spelled out, and without it the first
    # piece of a stream waits 40 ms for the client to acknowledge the headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Cannot listen on {config.host}:{config.port}", cause=error.strerror or str(error),
            remedy="Choose another --port, or stop what uses it", param="port",
        ) from None  # fmt: skip
    return listener


def run(engine_config: EngineConfig, config: ServerConfig, *, on_ready: Any = None, **options: Any) -> None:
    """Loads the model and serves it until a signal. ``on_ready(url, app)`` is called once requests are answered."""
    listener = bind(config)
    gc.disable()  # loading makes a million objects that stay, and every collection would walk them
    try:
        metrics = Metrics(config.served_model_name or engine_config.model)
        engine = AsyncEngine.from_config(engine_config, listener=metrics)
        if config.chat_template is not None:
            engine.chat_template = _own_template(Path(config.chat_template), engine_config.model)
        app = create_app(engine, config, metrics=metrics)
        server = build_server(app, config, **options)
        gc.freeze()  # nor need they be walked from now on: a full collection would stop all tokens for 50 ms
        gc.enable()
        sys.setswitchinterval(_SWITCH_SECONDS)
        asyncio.run(_serve(server, listener, on_ready))
    finally:
        gc.unfreeze()  # or the last collection would leave native objects behind, which nanobind reports as leaks
        gc.enable()
        listener.close()


def _own_template(path: Path, model_name: str) -> ChatTemplate:
    model = open_model(store.resolve(model_name).path)  # only for the names of its special tokens
    try:
        return ChatTemplate.from_file(path, model)
    finally:
        model.close()


async def _serve(server: Server, listener: socket.socket, on_ready: Any) -> None:
    serving = asyncio.create_task(server.serve([listener]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    if on_ready is not None and server.started:
        host, port = listener.getsockname()[:2]
        on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}", server.config.app)
    await serving
