"""One client: a connection that asks a server for completions and notes when their tokens come.

Owns: the socket and the clock. Must not know: other clients, or how results are summed up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from sixfold.bench.stream import BadResponse, Events, Response

READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Server:
    """Where to ask, and how. ``url`` is without ``/v1``."""

    url: str
    model: str
    api_key: str | None = None
    without: frozenset[str] = frozenset()  # fields of a request that this server refuses
    timeout: float = 600.0  # seconds a request

    @property
    def address(self) -> tuple[str, int, bool]:
        """(host, port, TLS)."""
        parts = urllib.parse.urlsplit(self.url)
        secure = parts.scheme == "https"
        return parts.hostname or "127.0.0.1", parts.port or (443 if secure else 80), secure


@dataclass(frozen=True)
class Request:
    prompt: list[int] | str
    new_tokens: int

    def body(self, server: Server) -> dict[str, Any]:
        """Of ``/v1/completions``; greedy, and exactly as many tokens as wanted where the server can be told so."""
        fields = {
            "model": server.model,
            "prompt": self.prompt,
            "max_tokens": self.new_tokens,
            "min_tokens": self.new_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return {name: value for name, value in fields.items() if name not in server.without}


@dataclass
class Outcome:
    """How one request went. Seconds. ``error`` None: it ended as it should."""

    wanted: int
    error: str | None = None
    first: float | None = None
    total: float = 0.0
    gaps: list[float] = field(default_factory=list)  # between pieces: a token each, unless a server joins some
    prompt_tokens: int | None = None
    output_tokens: int = 0


class Client:
    """Requests one after the other on one connection, which is opened again when it has to be."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        host, port, _ = server.address
        path = urllib.parse.urlsplit(server.url).path.rstrip("/")
        lines = [f"POST {path}/v1/completions HTTP/1.1", f"Host: {host}:{port}", "Content-Type: application/json"]
        if server.api_key:
            lines.append(f"Authorization: Bearer {server.api_key}")
        self._head = "\r\n".join([*lines, "Content-Length: "])

    async def ask(self, request: Request) -> Outcome:
        """Never raises for what the server or the network does: that is a failed outcome."""
        outcome = Outcome(request.new_tokens)
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._server.timeout):
                await self._ask(request, outcome, began)
        except TimeoutError:
            outcome.error = f"no end within {self._server.timeout:.0f} s"
        except (OSError, BadResponse, ValueError) as error:
            outcome.error = f"{type(error).__name__}: {error}"
        if outcome.error is not None:
            await self.close()
        outcome.total = time.perf_counter() - began
        return outcome

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._reader = self._writer = None

    async def _ask(self, request: Request, outcome: Outcome, began: float) -> None:
        last = began
        pieces = 0
        ended = False
        async for now, data in self._events(json.dumps(request.body(self._server)).encode()):
            if data == b"[DONE]":
                ended = True
                continue
            event = json.loads(data)
            if event.get("error"):
                raise BadResponse(str(event["error"])[:200])
            if usage := event.get("usage"):
                outcome.prompt_tokens = usage.get("prompt_tokens")
                outcome.output_tokens = usage.get("completion_tokens") or 0
            if not event.get("choices"):
                continue
            if pieces == 0:
                outcome.first = now - began
            elif event["choices"][0].get("text"):
                outcome.gaps.append(now - last)
            else:
                continue  # the end of a stream, without a token
            pieces += 1
            last = now
        if not ended:
            raise BadResponse("the stream ended before [DONE]")
        if pieces == 0:
            raise BadResponse("no token came")
        outcome.output_tokens = outcome.output_tokens or pieces

    async def _send(self, body: bytes) -> tuple[asyncio.StreamReader, bytes]:
        """Sends a request and waits for the first bytes of its answer.

        Once more on a new connection if an old one ends before any: llama-server closes it after every stream.
        """
        if self._reader is not None and self._reader.at_eof():
            await self.close()
        old = self._writer is not None and not self._writer.is_closing()
        if not old:
            host, port, secure = self._server.address
            self._reader, self._writer = await asyncio.open_connection(host, port, ssl=secure or None)
        reader, writer = self._reader, self._writer
        assert reader is not None and writer is not None
        data = b""
        try:
            writer.write(f"{self._head}{len(body)}\r\n\r\n".encode() + body)
            data = await reader.read(READ_BYTES)
        except ConnectionError:
            if not old:
                raise
        if data or not old:
            return reader, data
        await self.close()
        return await self._send(body)

    async def _events(self, body: bytes) -> AsyncIterator[tuple[float, bytes]]:
        """(time of arrival, data) of every event."""
        reader, data = await self._send(body)
        response, events, refusal = Response(), Events(), b""
        while not response.done:
            now = time.perf_counter()
            if not data:
                response.end()
                if not response.done:
                    raise BadResponse("the server closed the connection")
            piece = response.feed(data)
            if response.status not in (0, 200):
                refusal += piece
            else:
                for event in events.feed(piece):
                    yield now, event
            if not response.done:
                data = await reader.read(READ_BYTES)
        if response.status != 200:
            raise BadResponse(f"HTTP {response.status}: {refusal[:200].decode('utf-8', 'replace')}")
        if not response.reusable:
            await self.close()
