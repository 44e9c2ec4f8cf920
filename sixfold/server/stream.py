"""Server-sent events: deltas of the engine as the chunks of a streamed response.

Owns: the bytes of every event and their order. Must not know: routes, or how a request runs.

What surrounds the text of a chunk is written once a choice, so that a token costs one escape and one concatenation:

    data: {"id":...,"object":...,"model":...,"choices":[{"index":0,"text":" sea","logprobs":null,...}]}
          |------------------ self._head -------------||--------------- choice --------------------|
    |-------------------------- frame[0] ----------------------------|      |------ frame[1] ------|
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sixfold.server.completions import CompletionChoices
from sixfold.server.error_body import describe
from sixfold.server.generation import Generation, cancel, disconnected
from sixfold.server.responses import PromptCounts, ResponseHead, chat_logprobs, usage
from sixfold.server.sampling_fields import StreamOptions
from sixfold.types import CompletionOutput, RequestOutput

_log = logging.getLogger("sixfold.server")

DONE = b"data: [DONE]\n\n"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_MARK = "\0"  # stands for the text in a chunk that is cut into what comes before and after it


def error_event(error: BaseException) -> bytes:
    """How a stream that has begun fails: OpenAI's clients raise on an event with the key ``error``."""
    return f"data: {_encode(describe(error)[1])}\n\n".encode() + DONE


def log_failure(error: BaseException) -> None:
    if describe(error)[0] == 500:
        _log.error("A stream failed", exc_info=error)


class Events:
    """The events of one streamed request. :meth:`feed` gives the text of a delta's, :meth:`end` the last bytes."""

    kind: str

    def __init__(self, head: ResponseHead, options: StreamOptions) -> None:
        self._head = f'data: {_encode(head.fields(self.kind))[:-1]},"choices":['
        self._options = options
        self._frames: dict[tuple[int, int], tuple[str, str]] = {}  # by prompt and choice: around the text of a chunk
        self._prompts: dict[int, PromptCounts] = {}
        self._completion_tokens = 0

    def feed(self, prompt: int, output: RequestOutput) -> str:
        if prompt not in self._prompts:
            self._prompts[prompt] = PromptCounts.of(output)
        for choice in output.outputs:
            self._completion_tokens += self._counted(choice)
        chunks: list[str] = []
        for choice in output.outputs:
            frame = self._frames.get((prompt, choice.index))
            if frame is None or choice.logprobs is not None or choice.finish_reason is not None:
                chunks += self._chunks(prompt, output, choice)
                if frame is None:
                    self._keep_frame(prompt, choice.index)
            elif choice.text:
                chunks += (frame[0], _encode(choice.text), frame[1])
        return "".join(chunks)

    def end(self) -> bytes:
        if not self._options.include_usage:
            return DONE
        return f'{self._head}],"usage":{_encode(self._usage())}}}\n\n'.encode() + DONE

    def _chunks(self, prompt: int, output: RequestOutput, choice: CompletionOutput) -> list[str]:
        raise NotImplementedError

    def _text_chunk(self, prompt: int, index: int) -> str:
        """A chunk of nothing but the text ``_MARK``."""
        raise NotImplementedError

    def _keep_frame(self, prompt: int, index: int) -> None:
        """From the second delta on, a choice's chunks differ in their text only, unless each counts the usage."""
        if not self._options.continuous_usage_stats:
            before, _, after = self._text_chunk(prompt, index).rpartition(_encode(_MARK))
            self._frames[prompt, index] = before, after

    def _counted(self, choice: CompletionOutput) -> int:
        return len(choice.token_ids)

    def _usage(self) -> dict[str, Any]:
        return usage(list(self._prompts.values()), self._completion_tokens)

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

    def _chunks(self, prompt: int, output: RequestOutput, choice: CompletionOutput) -> list[str]:
        chunks = []
        index = choice.index
        if index not in self._begun:
            self._begun.add(index)
            delta = '{"role":"assistant","content":"","tool_calls":null}'
            chunks.append(self._chunk(_chat_choice(index, delta)))
        if choice.text or choice.logprobs:
            logprobs = _encode(chat_logprobs(choice.logprobs, self._as_id)) if choice.logprobs else "null"
            chunks.append(self._chunk(_chat_choice(index, _content(choice.text), logprobs)))
        if choice.finish_reason:
            finish = f'{_encode(choice.finish_reason)},"stop_reason":{_encode(choice.stop_reason)}'
            chunks.append(self._chunk(_chat_choice(index, '{"tool_calls":null}', finish=finish)))
        return chunks

    def _text_chunk(self, prompt: int, index: int) -> str:
        return self._chunk(_chat_choice(index, _content(_MARK)))


def _content(text: str) -> str:
    return f'{{"content":{_encode(text)},"tool_calls":null}}'


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

    def _chunks(self, prompt: int, output: RequestOutput, choice: CompletionOutput) -> list[str]:
        fields = self._choices.choice(prompt, output, choice)
        wanted = fields["text"] or fields["logprobs"] or fields["finish_reason"]
        return [self._chunk(_encode(fields))] if wanted else []

    def _text_chunk(self, prompt: int, index: int) -> str:
        return self._chunk(_encode(self._choices.text_only(prompt, index, _MARK)))

    def _counted(self, choice: CompletionOutput) -> int:
        return 0 if self._only_prompt else len(choice.token_ids)


class EventStream(Response):
    """Sends events as they come, all that are there in one write; whatever ends it also ends the generation."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, events: Events) -> None:
        self.status_code = 200
        self.background = None
        # x-accel-buffering: a proxy that collects chunks would undo the streaming
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._generation = generation
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [asyncio.create_task(self._watch(receive))]
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            # In a task of its own: a delta wakes this one, and not the dozen coroutines of routing around it.
            tasks.append(asyncio.create_task(self._send_deltas(send)))
            await tasks[-1]
        except ClientDisconnect:
            pass
        finally:
            await cancel(*tasks)
            await self._generation.aclose()

    async def _send_deltas(self, send: Send) -> None:
        feed = self._events.feed
        try:
            while batch := await self._generation.next():
                if piece := "".join([feed(prompt, output) for prompt, output in batch]):
                    await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
            last = self._events.end()
        except ClientDisconnect:
            raise
        except Exception as error:
            # The status line is long gone: the failure travels as an event, never as a stack trace.
            log_failure(error)
            last = error_event(error)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _watch(self, receive: Receive) -> None:
        await disconnected(receive)
        self._generation.leave()
