"""Runs the prompts of one HTTP request on the engine: all of them or none, stopped when the client leaves.

Owns: the engine streams of one request. Must not know: JSON, SSE, or routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from sixfold.engine.async_engine import AsyncEngine, RequestStream
from sixfold.engine.collect import Collector
from sixfold.server.error_body import DrainingError, GenerationFailedError
from sixfold.types import RequestOutput, SamplingParams

T = TypeVar("T")


@dataclass(frozen=True)
class TokenPrompt:
    ids: Sequence[int]
    text: str | None = None


class Generation:
    """One running request. Iterate :meth:`deltas` or await :meth:`results`, then :meth:`aclose` in any case."""

    def __init__(self, streams: Sequence[RequestStream], retry_after: Callable[[], float | None]) -> None:
        self._streams = streams
        self._retry_after = retry_after  # seconds if the server is draining

    @classmethod
    async def start(
        cls,
        engine: AsyncEngine,
        prompts: Sequence[TokenPrompt],
        params: SamplingParams,
        *,
        priority: int,
        retry_after: Callable[[], float | None],
    ) -> Generation:
        """Queues every prompt. Raises the engine's errors before any of them costs computation."""
        for prompt in prompts[1:]:  # the first is checked by generate()
            engine.validate(prompt.ids, params)
        streams: list[RequestStream] = []
        try:
            for prompt in prompts:
                streams.append(engine.generate(prompt.ids, params, priority=priority, prompt=prompt.text))
        except BaseException:
            for stream in streams:
                await stream.aclose()
            raise
        return cls(streams, retry_after)

    async def deltas(self) -> AsyncGenerator[list[tuple[int, RequestOutput]], None]:
        """Batches of (prompt index, delta): all that came since the last batch, so a slow reader gets larger ones."""
        ready: list[tuple[int, RequestOutput]] = []
        wake = asyncio.Event()

        async def pump(index: int, stream: RequestStream) -> None:
            async for output in stream:
                self._check(output)
                ready.append((index, output))
                wake.set()

        pumps = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(self._streams)]
        for task in pumps:
            task.add_done_callback(lambda _: wake.set())
        try:
            while True:
                await wake.wait()
                wake.clear()
                if ready:
                    batch, ready[:] = list(ready), []
                    yield batch
                    continue
                done = [task for task in pumps if task.done()]
                for task in done:
                    task.result()  # raises what the pump raised
                if len(done) == len(pumps):
                    return
        finally:
            await _cancel(*pumps)

    async def results(self) -> list[RequestOutput]:
        """The whole output of every prompt, in order."""
        collectors = [Collector() for _ in self._streams]
        async for batch in self.deltas():
            for index, output in batch:
                collectors[index].add(output)
        return [collector.result() for collector in collectors]

    async def aclose(self) -> None:
        """Aborts what still runs. Idempotent."""
        for stream in self._streams:
            await stream.aclose()

    def _check(self, output: RequestOutput) -> None:
        for choice in output.outputs:
            if choice.finish_reason == "abort":
                if (seconds := self._retry_after()) is not None:
                    raise DrainingError(seconds, what="The server shut down before this request finished")
                raise GenerationFailedError("This request was aborted", remedy="Send it again")
            if choice.finish_reason == "error":
                raise GenerationFailedError(f"The engine failed on this request: {choice.stop_reason}")


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """``work``'s result; cancels it and raises :class:`ClientDisconnect` when the client leaves first."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        await _cancel(task, left)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
