"""Server-sent events: deltas of the engine as the chunks of a streamed response.

Owns: the bytes of every event and their order. Must not know: routes, or how a request runs.

The constant part of a chunk is written once a request, so that a token costs one string escape and one concatenation:

    data: {"id":...,"object":...,"created":...,"model":...,"system_fingerprint":...,"choices":[{"index":0,...}]}
          |------------------------------ self._head ------------------------------------------||-- choice --|
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sixfold.server.completions import CompletionChoices
from sixfold.server.error_body import describe
from sixfold.server.responses import ResponseHead, chat_logprobs, usage
from sixfold.server.sampling_fields import StreamOptions
from sixfold.types import CompletionOutput, RequestOutput

_log = logging.getLogger("sixfold.server")

DONE = b"data: [DONE]\n\n"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def error_event(error: BaseException) -> bytes:
    """How a stream that has begun fails: OpenAI's clients raise on an event with the key ``error``."""
    return f"data: {_encode(describe(error)[1])}\n\n".encode() + DONE


def log_failure(error: BaseException) -> None:
    if describe(error)[0] == 500:
        _log.error("A stream failed", exc_info=error)


class Events:
    """The events of one streamed request. :meth:`feed` gives the bytes of a delta, :meth:`end` the last ones."""

    kind: str

    def __init__(self, head: ResponseHead, options: StreamOptions) -> None:
        self._head = f'data: {_encode(head.fields(self.kind))[:-1]},"choices":['
        self._options = options
        self._prompt_tokens: dict[int, int] = {}
        self._cached_tokens: dict[int, int] = {}
        self._completion_tokens = 0

    def feed(self, prompt: int, output: RequestOutput) -> bytes:
        if prompt not in self._prompt_tokens:
            self._prompt_tokens[prompt] = len(output.prompt_token_ids)
            self._cached_tokens[prompt] = output.cached_tokens
        for choice in output.outputs:
            self._completion_tokens += self._counted(choice)
        return "".join(self._chunks(prompt, output)).encode()

    def end(self) -> bytes:
        if not self._options.include_usage:
            return DONE
        return f'{self._head}],"usage":{_encode(self._usage())}}}\n\n'.encode() + DONE

    def _chunks(self, prompt: int, output: RequestOutput) -> list[str]:
        raise NotImplementedError

    def _counted(self, choice: CompletionOutput) -> int:
        return len(choice.token_ids)

    def _usage(self) -> dict[str, Any]:
        cached = sum(self._cached_tokens.values())
        return usage(sum(self._prompt_tokens.values()), self._completion_tokens, cached)

    def _chunk(self, choice: str) -> str:
        if self._options.continuous_usage_stats:
            return f'{self._head}{choice}],"usage":{_encode(self._usage())}}}\n\n'
        if self._options.include_usage:
            return f'{self._head}{choice}],"usage":null}}\n\n'
        return f"{self._head}{choice}]}}\n\n"


class ChatEvents(Events):
    """Per choice: a chunk with the role, the content, and a chunk with the finish reason and an empty delta.

    The role comes once: openai-python concatenates the strings of all deltas. It leaves with the first content, not
    before, so that a client's time to first chunk is its time to first token. ``tool_calls`` is always there, because
    some clients require the key.
    """

    kind = "chat.completion.chunk"

    def __init__(self, head: ResponseHead, options: StreamOptions, as_id: bool) -> None:
        super().__init__(head, options)
        self._as_id = as_id
        self._begun: set[int] = set()

    def _chunks(self, prompt: int, output: RequestOutput) -> list[str]:
        chunks = []
        for choice in output.outputs:
            index = choice.index
            if index not in self._begun:
                self._begun.add(index)
                delta = '{"role":"assistant","content":"","tool_calls":null}'
                chunks.append(self._chunk(_chat_choice(index, delta)))
            if choice.text or choice.logprobs:
                delta = f'{{"content":{_encode(choice.text)},"tool_calls":null}}'
                logprobs = _encode(chat_logprobs(choice.logprobs, self._as_id)) if choice.logprobs else "null"
                chunks.append(self._chunk(_chat_choice(index, delta, logprobs)))
            if choice.finish_reason:
                finish = f'{_encode(choice.finish_reason)},"stop_reason":{_encode(choice.stop_reason)}'
                chunks.append(self._chunk(_chat_choice(index, '{"tool_calls":null}', finish=finish)))
        return chunks


def _chat_choice(index: int, delta: str, logprobs: str = "null", finish: str = "null") -> str:
    return f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{finish}}}'


class CompletionEvents(Events):
    kind = "text_completion"

    def __init__(
        self, head: ResponseHead, options: StreamOptions, choices: CompletionChoices, only_prompt: bool
    ) -> None:
        super().__init__(head, options)
        self._choices = choices
        self._only_prompt = only_prompt

    def _chunks(self, prompt: int, output: RequestOutput) -> list[str]:
        return [
            self._chunk(_encode(choice))
            for choice in self._choices.choices(prompt, output)
            if choice["text"] or choice["logprobs"] or choice["finish_reason"]
        ]

    def _counted(self, choice: CompletionOutput) -> int:
        return 0 if self._only_prompt else len(choice.token_ids)


class EventStream(StreamingResponse):
    """Sends events as they come; whatever ends it (also a client that left) calls ``close``."""

    def __init__(self, events: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]]) -> None:
        # x-accel-buffering: a proxy that collects chunks would undo the streaming
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
            await self._close()
