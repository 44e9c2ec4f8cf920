"""Runs an engine core on its own thread and streams its outputs to asyncio.

Owns: the thread, the command queue to it, and the streams back. Must not know: HTTP, how a step works.

    event loop   generate() --add--> commands --> |thread: step, step, ...| --one call a step and loop--> streams
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as List
from pathlib import Path
from typing import Self

from sixfold.config import EngineConfig
from sixfold.engine.adapter import Adapter
from sixfold.engine.chat_template import ChatTemplate
from sixfold.engine.core import EngineCore, StepListener
from sixfold.engine.loader import load_engine
from sixfold.engine.stats import EngineStats
from sixfold.engine.tokenizer import Tokenizer
from sixfold.errors import EngineDeadError, InvalidRequestError, OverloadedError
from sixfold.types import RequestOutput, ReuseContext, SamplingParams

log = logging.getLogger(__name__)
Command = Callable[[], None]


class _Mailbox:
    """Where the engine puts the deltas of one request; emptied by its stream on the same event loop."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.loop = asyncio.get_running_loop()
        self.items: deque[RequestOutput | EngineDeadError] = deque()
        self.waiter: asyncio.Future[None] | None = None

    def put(self, item: RequestOutput | EngineDeadError) -> None:
        self.items.append(item)
        self.wake()

    def wake(self) -> None:
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class RequestStream:
    """The deltas of one request, in order; the last one says ``finished``. For one task at a time.

    Iterate it, or wait for several streams with one future: :meth:`notify`, then :meth:`take` from each. A stream that
    is closed, dropped, or cancelled while it waits in an iteration aborts its request.
    """

    def __init__(self, engine: AsyncEngine, mailbox: _Mailbox) -> None:
        self.request_id = mailbox.request_id
        self.over = False  # the last item has been taken, or nobody wants it any more
        self.error: EngineDeadError | None = None  # what ended it, if not its last delta
        self._engine = engine
        self._mailbox = mailbox

    def take(self) -> list[RequestOutput]:
        """All deltas that have come and were not taken yet, without waiting."""
        items = self._mailbox.items
        taken = list(items)
        items.clear()
        if taken and not self.over:
            last = taken[-1]
            if isinstance(last, EngineDeadError):
                self.error = last
                self.over = True
                taken.pop()
            else:
                self.over = last.finished
        return taken  # type: ignore[return-value]  # an error comes last

    def notify(self, waiter: asyncio.Future[None]) -> None:
        """Sets the result of ``waiter`` as soon as there is something to take; at once if there is."""
        self._mailbox.waiter = waiter
        if self._mailbox.items:
            self._mailbox.wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.over:
            raise StopAsyncIteration
        mailbox = self._mailbox
        while not mailbox.items:
            mailbox.waiter = mailbox.loop.create_future()
            try:
                await mailbox.waiter
            except BaseException:
                self._close()
                raise
        item = mailbox.items.popleft()
        if isinstance(item, EngineDeadError):
            self.error = item
            self.over = True
            raise item
        self.over = item.finished
        return item

    async def aclose(self) -> None:
        """Aborts the request unless it has finished, and frees its pages."""
        self._close()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        if not self.over:
            self.over = True
            self._engine._abort(self._mailbox)


class AsyncEngine:
    """Requests come in on event loops; one thread steps the core and sleeps while there is nothing to do."""

    def __init__(
        self,
        core: EngineCore,
        tokenizer: Tokenizer,
        *,
        chat_template: ChatTemplate | None = None,
        model_name: str = "",
        max_queue: int = 1024,
    ) -> None:
        self.core = core  # belongs to the thread; others may read its limits and stats
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.model_name = model_name
        self.max_model_len = core.limits.max_model_len
        self.approximations = core.approximations
        self.reuse_of = core.limits.reuse_of
        self.draining = False
        self.dead = False
        self._max_queue = max_queue
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()  # its put is safe in __del__
        self._mailboxes: dict[str, _Mailbox] = {}
        self._submitted = 0
        self._lock = threading.Lock()  # over _mailboxes, _submitted and dead: several event loops may submit
        self._ids = itertools.count()
        self._thread = threading.Thread(target=self._run, name="sixfold-engine", daemon=True)
        self._thread.start()

    @classmethod
    def from_config(cls, config: EngineConfig, listener: StepListener | None = None) -> Self:
        """Loads the model, which takes seconds, and starts the thread."""
        loaded = load_engine(config, listener)
        return cls(
            loaded.core,
            loaded.tokenizer,
            chat_template=loaded.chat_template,
            model_name=loaded.name,
            max_queue=config.max_queue,
        )

    def generate(
        self,
        prompt_ids: List[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        prompt: str | None = None,
        cache_salt: str | None = None,
        reuse_context: ReuseContext | bool | None = None,
        lora: str | None = None,
    ) -> RequestStream:
        """Queues a request; call it on the event loop that reads the stream.

        Raises at once, before any output: InvalidRequestError and ContextLengthError for what can never run,
        ModelNotFoundError for an adapter (``lora``) that is not loaded, OverloadedError when the queue is full or
        draining, EngineDeadError.
        """
        request_id = request_id or f"request-{next(self._ids)}"
        request = self.core.limits.accept(
            request_id, prompt_ids, params, priority=priority, arrival=time.monotonic(), prompt=prompt,
            cache_salt=cache_salt, reuse_context=reuse_context, lora=self.core.adapters.named(lora),
        )  # fmt: skip
        mailbox = _Mailbox(request_id)
        with self._lock:
            self._check_open(request_id)
            self._mailboxes[request_id] = mailbox
            self._submitted += 1
        self._commands.put(lambda: self.core.add(request))
        return RequestStream(self, mailbox)

    async def prepare(self, params: SamplingParams) -> object:
        """Compiles what the parameters demand of the output, off the event loop, so that :meth:`generate` need not
        wait as long as the answer is kept. Raises InvalidRequestError for a grammar that can not be followed or takes
        too long."""
        return await self.core.limits.prepare(params)

    def validate(self, prompt_ids: List[int], params: SamplingParams) -> None:
        """Raises what :meth:`generate` would raise for a request that can never run."""
        self.core.limits.check(prompt_ids, params)

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """The LoRA adapters that requests may name."""
        return self.core.adapters.names

    def load_lora(self, name: str, path: Path) -> Adapter:
        """Reads an adapter and serves it under the name. Takes a moment; call it from any thread but the event loop's.

        Raises InvalidRequestError, ModelFileError and UnsupportedModelError.
        """
        return self.core.adapters.load(name, path)

    def unload_lora(self, name: str) -> None:
        """Requests that have the adapter go on, and its memory is freed after them. Raises ModelNotFoundError."""
        adapter = self.core.adapters.unload(name)
        self._commands.put(lambda: self.core.adapters.retire(adapter))

    def reset_prefix_cache(self) -> None:
        """Forgets all cached prefixes before any request that is submitted later. Raises EngineDeadError."""
        if self.dead:
            raise _dead("it failed or was shut down before")
        self._commands.put(self.core.reset_prefix_cache)

    def stats(self) -> EngineStats:
        """The state now, requests on their way to the thread included. Any thread may ask."""
        return dataclasses.replace(self.core.stats(), requests=len(self._mailboxes), queued=self._queued())

    async def drain(self, timeout: float) -> bool:
        """Refuses new requests and lets running ones finish; aborts what is left after ``timeout`` seconds.

        True if all finished by themselves.
        """
        self.draining = True
        if await self._emptied(timeout):
            return True
        for mailbox in list(self._mailboxes.values()):
            self._abort(mailbox)
        await self._emptied(5.0)  # an abort waits for the step that runs
        return False

    def shutdown(self) -> None:
        """Stops the thread after its step; unfinished streams raise EngineDeadError. Safe to repeat."""
        self.draining = True
        self._commands.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    async def _emptied(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self._mailboxes and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return not self._mailboxes

    def _queued(self) -> int:
        """Requests that have never run."""
        return self._submitted - self.core.totals.started

    def _check_open(self, request_id: str) -> None:
        if self.dead:
            raise _dead("it failed or was shut down before")
        if self.draining:
            raise OverloadedError("The engine is shutting down", remedy="Send the request to another server")
        if self._queued() >= self._max_queue:
            raise OverloadedError(
                f"The queue is full: {self._max_queue} requests wait",
                remedy="Try again later, or raise max_queue",
            )
        if request_id in self._mailboxes:
            raise InvalidRequestError(
                f"The request id {request_id!r} is in use", remedy="Use a fresh one", param="request_id"
            )

    def _abort(self, mailbox: _Mailbox) -> None:
        """Any thread, also while collecting garbage: so no lock."""
        self._commands.put(lambda: self._abort_now(mailbox))

    # From here on: the engine thread.

    def _run(self) -> None:
        cause, clean = "it was shut down", False
        try:
            while self._obey():
                self._deliver(self.core.step())
            clean = True  # what is cached is known to be right
        except BaseException as error:
            log.exception("The engine stops on an internal failure")
            cause = f"{type(error).__name__}: {error}"
        with self._lock:
            self.dead = True
            left = list(self._mailboxes.values())
            self._mailboxes.clear()
        self._post((mailbox, _dead(cause)) for mailbox in left)
        if clean:
            self._close_core()

    def _close_core(self) -> None:
        try:
            self.core.close()
        except Exception:
            log.exception("What the engine had cached could not be stored")

    def _obey(self) -> bool:
        """Carries out commands; sleeps while there is nothing else to do. False when told to stop."""
        while not (self.core.has_work and self._commands.empty()):
            try:
                command = self._commands.get(timeout=None if self.core.has_work else self.core.rest())
            except queue.Empty:
                continue
            if command is None:
                return False
            command()
        return True

    def _abort_now(self, mailbox: _Mailbox) -> None:
        if self._mailboxes.get(mailbox.request_id) is mailbox:
            output = self.core.abort(mailbox.request_id)
            self._deliver([] if output is None else [output])

    def _deliver(self, outputs: List[RequestOutput]) -> None:
        letters = [(self._mailboxes[output.request_id], output) for output in outputs]
        for mailbox, output in letters:
            if output.finished:
                with self._lock:
                    del self._mailboxes[mailbox.request_id]
        self._post(letters)

    def _post(self, letters: Iterable[tuple[_Mailbox, RequestOutput | EngineDeadError]]) -> None:
        """Hands letters to the streams' event loops, one call for each loop."""
        by_loop = defaultdict(list)
        for mailbox, item in letters:
            by_loop[mailbox.loop].append((mailbox, item))
        for loop, bundle in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put_all, bundle)
            except RuntimeError:  # the loop is closed: nobody listens there any more
                for mailbox, _ in bundle:
                    self._abort(mailbox)


def _put_all(letters: List[tuple[_Mailbox, RequestOutput | EngineDeadError]]) -> None:
    for mailbox, item in letters:
        mailbox.put(item)


def _dead(cause: str) -> EngineDeadError:
    return EngineDeadError("The engine has stopped", cause=cause, remedy="Restart the server")
