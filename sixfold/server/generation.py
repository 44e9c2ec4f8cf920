"""Runs the prompts of one HTTP request on the engine: all of them or none, stopped when the client leaves.

Owns: the engine streams of one request. Must not know: JSON, SSE, or routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from sixfold.engine.async_engine import AsyncEngine, RequestStream
from sixfold.engine.collect import Collector
from sixfold.server.error_body import DrainingError, GenerationFailedError
from sixfold.types import RequestOutput, ReuseContext, SamplingParams

T = TypeVar("T")


@dataclass(frozen=True)
class TokenPrompt:
    ids: Sequence[int]
    text: str | None = None


class Generation:
    """One running request. Await :meth:`next` again and again, or :meth:`results`; then :meth:`aclose` in any case."""

    def __init__(self, streams: Sequence[RequestStream], retry_after: Callable[[], float | None]) -> None:
        self._streams = streams
        self._open = list(enumerate(streams))  # those whose last delta has not been read
        self._retry_after = retry_after  # seconds if the server is draining
        self._waiter: asyncio.Future[None] | None = None  # what next() waits for
        self._left = False
        self._failure: Exception | None = None

    @classmethod
    async def start(
        cls,
        engine: AsyncEngine,
        prompts: Sequence[TokenPrompt],
        params: SamplingParams,
        *,
        priority: int,
        cache_salt: str | None,
        reuse_context: ReuseContext | bool | None,
        lora: str | None = None,
        retry_after: Callable[[], float | None],
    ) -> Generation:
        """Queues every prompt. Raises the engine's errors before any of them costs computation."""
        _prepared = await engine.prepare(params)  # kept until all are queued
        for prompt in prompts[1:]:  # the first is checked by generate()
            engine.validate(prompt.ids, params)
        streams: list[RequestStream] = []
        try:
            for prompt in prompts:
                streams.append(
                    engine.generate(
                        prompt.ids, params, priority=priority, prompt=prompt.text, cache_salt=cache_salt,
                        reuse_context=reuse_context, lora=lora,
                    )
                )  # fmt: skip
        except BaseException:
            for stream in streams:
                await stream.aclose()
            raise
        return cls(streams, retry_after)

    async def next(self) -> list[tuple[int, RequestOutput]]:
        """All deltas that came since the last call, with their prompts' indices: so a slow reader gets larger batches.

        Waits for at least one; empty when everything is over. Raises the engine's errors, in their place among the
        deltas, and ClientDisconnect after :meth:`leave`.
        """
        if self._failure is not None:
            raise self._failure
        while self._open:
            self._waiter = asyncio.get_running_loop().create_future()
            for _, stream in self._open:
                stream.notify(self._waiter)
            await self._waiter
            if self._left:
                raise ClientDisconnect
            batch = [(i, output) for i, stream in self._open for output in stream.take()]
            if not batch:
                self._raise_error()
                continue
            if any(output.finished for _, output in batch):
                self._open = [(i, stream) for i, stream in self._open if not stream.over]
                return self._until_failure(batch)
            return batch
        return []

    def _raise_error(self) -> None:
        for stream in self._streams:
            if stream.error is not None:
                raise stream.error

    def leave(self) -> None:
        """Says that the client is gone; on the event loop."""
        self._left = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def results(self) -> list[RequestOutput]:
        """The whole output of every prompt, in order."""
        collectors = [Collector() for _ in self._streams]
        while batch := await self.next():
            for index, output in batch:
                collectors[index].add(output)
        return [collector.result() for collector in collectors]

    async def aclose(self) -> None:
        """Aborts what still runs. Idempotent."""
        for stream in self._streams:
            await stream.aclose()

    def _until_failure(self, batch: list[tuple[int, RequestOutput]]) -> list[tuple[int, RequestOutput]]:
        """The deltas before the first that failed; the failure is raised when they have been read."""
        for at, (_, output) in enumerate(batch):
            if (failure := self._failure_of(output)) is not None:
                if at == 0:
                    raise failure
                self._failure = failure
                return batch[:at]
        return batch

    def _failure_of(self, output: RequestOutput) -> Exception | None:
        for choice in output.outputs:
            if choice.finish_reason == "abort":
                if (seconds := self._retry_after()) is not None:
                    return DrainingError(seconds, what="The server shut down before this request finished")
                return GenerationFailedError("This request was aborted", remedy="Send it again")
            if choice.finish_reason == "error":
                return GenerationFailedError(f"The engine failed on this request: {choice.stop_reason}")
        return None


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """``work``'s result; cancels it and raises :class:`ClientDisconnect` when the client leaves first."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        await cancel(task, left)


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
