"""An AsyncEngine that answers from a script, with a byte tokenizer, so that the server is tested without a model."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sixfold.engine.limits import Limits
from sixfold.engine.stats import EngineStats
from sixfold.errors import ContextLengthError, EngineDeadError, InvalidRequestError, ModelNotFoundError, OverloadedError
from sixfold.types import CompletionOutput, PositionLogprobs, RequestOutput, ReuseContext, SamplingParams, TokenLogprob

BOS, EOS = 256, 257


class FakeTokenizer:
    """A token is a byte; 256 is BOS, 257 is EOS."""

    vocab_size = 258
    bos_id = BOS
    eos_ids = frozenset({EOS})
    add_bos = True

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        return [BOS] * add_special + list(text.encode())

    def encode_chat(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True, continuation: bool = False) -> str:
        return b"".join(self.token_bytes(i) for i in ids if i < 256 or not skip_special).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            raise InvalidRequestError(f"Token id {token_id} is not in the vocabulary", remedy="Use ids below 258")
        return {BOS: b"<s>", EOS: b"</s>"}.get(token_id) or bytes([token_id])

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def is_special(self, token_id: int) -> bool:
        return token_id > 255


class FakeTemplate:
    def render(
        self, messages: Sequence[Any], *, add_generation_prompt: bool = True, tools: Any = None, **_: Any
    ) -> str:
        text = "".join(f"{m['role']}: {m['content']}\n" for m in messages)
        return text + "assistant: " * add_generation_prompt


class FakeStream:
    """Gives the next delta ``engine.delay`` seconds after it is asked for, the first one at once."""

    def __init__(self, engine: FakeEngine, request_id: str, outputs: list[RequestOutput]) -> None:
        self.request_id = request_id
        self.over = False
        self.error: Exception | None = None
        self._engine = engine
        self._outputs = iter(outputs)
        self._ready: list[RequestOutput] = []
        self._timer: asyncio.TimerHandle | None = None
        self._first = True

    def take(self) -> list[RequestOutput]:
        taken, self._ready = self._ready, []
        if taken and taken[-1].finished:
            self._end()
        return taken

    def notify(self, waiter: asyncio.Future[None]) -> None:
        self._waiter = waiter
        if not self.over and self._timer is None:
            delay = 0 if self._first else self._engine.delay
            self._timer = asyncio.get_running_loop().call_later(delay, self._produce)

    def _produce(self) -> None:
        engine = self._engine
        self._timer, self._first = None, False
        if self.over:
            return
        if engine.dead:
            self.error = EngineDeadError("The engine has stopped", remedy="Restart the server")
        elif engine.failure is not None:
            self.error = engine.failure
        else:
            output = next(self._outputs)
            if engine.aborting:
                choices = tuple(CompletionOutput(c.index, "", (), None, "abort") for c in output.outputs)
                output = RequestOutput(self.request_id, output.prompt_token_ids, choices, True)
            self._ready.append(output)
        if not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self) -> None:
        self.over = True
        self._engine.running.discard(self.request_id)

    async def aclose(self) -> None:
        if not self.over:
            self._end()
            self._engine.aborted.append(self.request_id)


class FakeEngine:
    """Every choice says ``answer`` and stops, or is cut at max_tokens."""

    def __init__(self, answer: str = "Hello, wörld!", *, delay: float = 0.0, max_queue: int = 64) -> None:
        self.tokenizer = FakeTokenizer()
        self.chat_template: FakeTemplate | None = FakeTemplate()
        self.model_name = "fake-model"
        self.approximations = ()
        self.reuse_of = Limits(FakeTokenizer.vocab_size, frozenset(), 20_000, 1 << 20).reuse_of
        self.max_model_len = 20_000
        self.answer = answer
        self.delay = delay
        self.max_queue = max_queue
        self.draining = self.dead = self.aborting = False
        self.failure: Exception | None = None
        self.fail_with: str | None = None  # finish_reason "error" with this message
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self.calls: list[tuple[list[int], SamplingParams, int]] = []
        self.salts: list[str | None] = []
        self.adapters: dict[str, Path] = {}
        self.loras: list[str | None] = []
        self.resets = 0
        self.cached_tokens: int | None = 2
        self._ids = itertools.count()

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    async def prepare(self, params: SamplingParams) -> None:
        pass

    def load_lora(self, name: str, path: Path) -> None:
        self.adapters[name] = path

    def unload_lora(self, name: str) -> None:
        if name not in self.adapters:
            raise ModelNotFoundError(f"No adapter {name!r} is loaded", remedy="Nothing is to be unloaded")
        del self.adapters[name]

    def validate(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        if not prompt_ids:
            raise InvalidRequestError("The prompt is empty", remedy="Send at least one token", param="prompt")
        if any(i >= self.tokenizer.vocab_size for i in (*prompt_ids, *params.logit_bias)):
            raise InvalidRequestError("A token id is not in the vocabulary", remedy="Use ids below 258")
        wanted = len(prompt_ids) + (params.max_tokens or 1)
        if wanted > self.max_model_len:
            raise ContextLengthError(
                f"{len(prompt_ids)} prompt tokens and {params.max_tokens} to generate do not fit",
                cause=f"the context has {self.max_model_len} tokens", remedy="Shorten the prompt",
            )  # fmt: skip

    def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        prompt: str | None = None,
        cache_salt: str | None = None,
        reuse_context: ReuseContext | bool | None = None,
        lora: str | None = None,
    ) -> FakeStream:
        self.validate(prompt_ids, params)
        if self.dead:
            raise EngineDeadError("The engine has stopped", remedy="Restart the server")
        if self.draining or len(self.running) >= self.max_queue:
            raise OverloadedError("The queue is full", remedy="Try again later")
        self.calls.append((list(prompt_ids), params, priority))
        self.salts.append(cache_salt)
        self.loras.append(lora)
        request_id = request_id or f"fake-{next(self._ids)}"
        self.running.add(request_id)
        return FakeStream(self, request_id, self._script(request_id, tuple(prompt_ids), params, prompt))

    def _script(
        self, request_id: str, prompt_ids: tuple[int, ...], params: SamplingParams, prompt: str | None
    ) -> list[RequestOutput]:
        answer = [(bytes([b]), b) for b in self.answer.encode()]
        limit = params.max_tokens or len(answer) + 1
        tokens = answer[:limit] if limit <= len(answer) else [*answer, (b"</s>", EOS)]
        scripted, held = [], b""
        for step, (raw, token) in enumerate(tokens):
            last = step == len(tokens) - 1
            held += b"" if token == EOS else raw
            text = _complete(held, last)
            held = b"" if text else held
            reason = None if not last else "stop" if token == EOS else "length"
            stop_reason: str | None = None
            if self.fail_with and last:
                reason, stop_reason = "error", self.fail_with
            logprobs = None if params.logprobs is None else (_position(token, params.logprobs),)
            choices = tuple(
                CompletionOutput(i, text, (token,), logprobs, reason, stop_reason) for i in range(params.n)  # type: ignore[arg-type]
            )  # fmt: skip
            before = None
            if params.prompt_logprobs is not None and step == 0:
                before = (None, *(_position(i, params.prompt_logprobs) for i in prompt_ids[1:]))
            scripted.append(RequestOutput(request_id, prompt_ids, choices, last, prompt, before, self.cached_tokens))
        return scripted

    async def drain(self, timeout: float) -> bool:
        self.draining = True
        deadline = time.monotonic() + timeout
        while self.running and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        clean = not self.running
        self.aborting = True
        return clean

    def shutdown(self) -> None:
        self.draining = True

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self.running), waiting=0, requests=len(self.running), queued=0, kv_pages_total=100,
            kv_pages_used=25, kv_pages_cached=40, kv_pages_shared=2, kv_empty_slots=3, kv_waste=0.015,
            kv_wasted_byte_seconds=3.0, kv_allocated_byte_seconds=200.0, prefix_queries=200, prefix_hits=128,
            prefix_evictions=7, prompt_tokens=0, generation_tokens=0,
            preemptions=4, steps=0, finished=0,
        )  # fmt: skip


def _complete(held: bytes, last: bool) -> str:
    try:
        return held.decode()
    except UnicodeDecodeError:
        return held.decode("utf-8", "replace") if last else ""


def _position(token: int, alternatives: int) -> PositionLogprobs:
    def logprob(token_id: int, value: float, rank: int) -> TokenLogprob:
        raw = FakeTokenizer().token_bytes(token_id)
        return TokenLogprob(token_id, value, rank, raw.decode("utf-8", "replace"), raw)

    others = [t for t in (65, 66, 67, 68, 69, 70) if t != token]
    top = [logprob(token, -0.5, 1), *(logprob(t, float("-inf"), i + 2) for i, t in enumerate(others))]
    return PositionLogprobs(logprob(token, -0.5, 1), tuple(top[:alternatives]))
