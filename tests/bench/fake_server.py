"""A server of OpenAI's completions that answers by a script: what the load generator must count and survive."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

Answer = Callable[[dict[str, Any]], list[bytes | float]]
CLOSE = b"close"
LATE_END = b"late end"


def event(value: object) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def tokens(count: int, delay: float = 0.0, **more: Any) -> list[bytes | float]:
    """A whole stream of ``count`` tokens, ``delay`` seconds before each."""
    parts: list[bytes | float] = []
    for index in range(count):
        parts += [delay, event({"choices": [{"text": f" {index}", "finish_reason": None}]})]
    parts.append(event({"choices": [{"text": "", "finish_reason": "length"}]}))
    parts.append(event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": count}, **more}))
    return [*parts, event(b"[DONE]")]


@contextlib.asynccontextmanager
async def serving(answer: Answer, seen: list[dict[str, Any]] | None = None) -> AsyncIterator[str]:
    """``answer(body)`` gives chunks and pauses in seconds; ``b"status 400"`` first refuses, ``b""`` hangs up,
    ``CLOSE`` hangs up after the whole answer; ``LATE_END`` has its last line come in a packet of its own."""
    connections = 0
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        mine = connections
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length:")[2].split()[0])
                body = json.loads(await reader.readexactly(length))
                if seen is not None:
                    seen.append({**body, "head": head, "connection": mine})
                if not await _answer(writer, answer(body)):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(writer: asyncio.StreamWriter, parts: list[bytes | float]) -> bool:
    if parts and isinstance(parts[0], bytes) and parts[0].startswith(b"status"):
        refusal = b'{"error": {"message": "not like this"}}'
        writer.write(b"HTTP/1.1 %s no\r\ncontent-length: %d\r\n\r\n%s" % (parts[0][7:], len(refusal), refusal))
        return True
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    for part in parts:
        if part in (CLOSE, LATE_END):
            continue
        if isinstance(part, float):
            await asyncio.sleep(part)
        elif part == b"":
            return False
        else:
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            await writer.drain()
    writer.write(b"0\r\n")
    if LATE_END in parts:
        await writer.drain()
        await asyncio.sleep(0.01)
    writer.write(b"\r\n")
    return CLOSE not in parts
