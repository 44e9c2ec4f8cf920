"""What all requests of one server share: the engine, the settings, the served names, and whether it drains.

Owns: prompts into tokens, the check of model names. Must not know: HTTP or JSON shapes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from sixfold.config import ServerConfig
from sixfold.engine.async_engine import AsyncEngine
from sixfold.engine.best_of import select, widen
from sixfold.errors import InvalidRequestError, ModelNotFoundError, TemplateError
from sixfold.metrics import Metrics
from sixfold.server.body import clip
from sixfold.server.generation import Generation, TokenPrompt, until_disconnect
from sixfold.server.openai import ChatTemplateFields, Prompt
from sixfold.server.responses import ResponseHead, fingerprint
from sixfold.server.sampling_fields import SamplingFields
from sixfold.server.search import beam_search
from sixfold.types import RequestOutput, SamplingParams

T = TypeVar("T")

# Text of more characters is rendered and tokenised in a thread, so that it never holds up the tokens of others.
_THREAD_CHARACTERS = 4096

# What clients send that were given a URL and no model name (huggingface_hub); it names nothing, so it asks for nothing.
_PLACEHOLDER = "dummy"

# Marks where the last message ends in a rendered prompt; a private-use character, so that no text is taken for it.
_END = "\U0010fffdsixfold-end\U0010fffd"


@dataclass
class ServerState:
    engine: AsyncEngine
    config: ServerConfig
    metrics: Metrics
    names: tuple[str, ...]  # the first is what responses say when a request names none
    created: int = field(default_factory=lambda: int(time.time()))
    drain_deadline: float | None = None  # on the monotonic clock; set once, when draining begins
    fingerprint: str = field(init=False)
    active: int = 0  # requests between their admission and the last byte of their response

    def __post_init__(self) -> None:
        self.fingerprint = fingerprint(self.engine.approximations)

    @property
    def draining(self) -> bool:
        return self.drain_deadline is not None or self.engine.draining

    def retry_after(self) -> float | None:
        """Seconds after which a client may try again, if the server is draining."""
        if not self.draining:
            return None
        return max(0.0, (self.drain_deadline or 0.0) - time.monotonic())

    def model_name(self, asked: str | None) -> str:
        """The name to answer with. Raises :class:`ModelNotFoundError` for one that is not served."""
        if asked is None or asked in self.names:
            return asked or self.names[0]
        if asked == _PLACEHOLDER:
            return self.names[0]
        adapters = self.engine.adapters
        if asked in adapters:
            return asked
        raise ModelNotFoundError(
            f"The model {clip(asked)!r} is not served here", remedy=f"Use {' or '.join([*self.names, *adapters])}",
            param="model",
        )  # fmt: skip

    def adapter(self, asked: str | None) -> str | None:
        """The LoRA adapter that a model name stands for, if it does."""
        return asked if asked not in self.names and asked in self.engine.adapters else None

    def head(self, prefix: str, ask: SamplingFields) -> ResponseHead:
        """Of a response to this request. Raises :class:`ModelNotFoundError`."""
        reuse = self.engine.reuse_of(ask.reuse_context)
        named = self.fingerprint if reuse is None else f"{self.fingerprint}-{reuse.name}"
        return ResponseHead.new(prefix, self.model_name(ask.model), named)

    async def start(self, prompts: Sequence[TokenPrompt], params: SamplingParams, ask: SamplingFields) -> Generation:
        return await Generation.start(
            self.engine, prompts, params, priority=ask.priority, cache_salt=ask.cache_salt,
            reuse_context=ask.reuse_context, lora=self.adapter(ask.model), retry_after=self.retry_after,
        )  # fmt: skip

    async def whole(
        self, request: Request, prompts: Sequence[TokenPrompt], params: SamplingParams, ask: SamplingFields
    ) -> list[RequestOutput]:
        """The finished answers. Ends what runs when the client leaves."""
        if (search := ask.search(params)) is not None:
            beams = beam_search(
                self.engine, prompts, search, priority=ask.priority, cache_salt=ask.cache_salt,
                lora=self.adapter(ask.model),
            )  # fmt: skip
            return await until_disconnect(request, beams)
        generation = await self.start(prompts, widen(params), ask)
        try:
            outputs = await until_disconnect(request, generation.results())
        finally:
            await generation.aclose()
        return [select(output, params) for output in outputs]

    def cut(self, prompts: Sequence[TokenPrompt], params: SamplingParams, ask: SamplingFields) -> Sequence[TokenPrompt]:
        """The last ``truncate_prompt_tokens`` of each prompt, if that is asked for; -1: what the context can take."""
        limit = ask.truncate_prompt_tokens
        if limit is None:
            return prompts
        if limit == -1:
            limit = self.engine.max_model_len - (params.max_tokens or 1)
        if limit < 1:
            raise InvalidRequestError(
                f"truncate_prompt_tokens={ask.truncate_prompt_tokens} leaves nothing",
                remedy="Use a positive count, or -1 for what fits", param="truncate_prompt_tokens",
            )  # fmt: skip
        return [prompt if len(prompt.ids) <= limit else TokenPrompt(prompt.ids[-limit:]) for prompt in prompts]

    async def tokenize(self, prompts: Sequence[Prompt], add_special: bool) -> list[TokenPrompt]:
        encode = self.engine.tokenizer.encode

        def tokens(prompt: Prompt) -> TokenPrompt:
            if prompt.text is None:
                return TokenPrompt(prompt.ids or ())
            return TokenPrompt(encode(prompt.text, add_special=add_special), prompt.text)

        size = sum(len(prompt.text or "") for prompt in prompts)
        return await _off_loop(size, lambda: [tokens(prompt) for prompt in prompts])

    async def tokenize_chat(self, messages: list[dict[str, Any]], fields: ChatTemplateFields) -> TokenPrompt:
        """Renders the model's chat template. Raises :class:`TemplateError` if there is none or it refuses."""
        # A template decides by its variables how long it works, so with any the size says nothing.
        size = _THREAD_CHARACTERS + 1 if fields.chat_template_kwargs else sum(len(m["content"]) for m in messages)
        return await _off_loop(size, lambda: self._chat_prompt(messages, fields))

    async def detokenize(self, ids: Sequence[int]) -> str:
        return await _off_loop(len(ids), lambda: self.engine.tokenizer.decode(ids, skip_special=False))

    def _chat_prompt(self, messages: list[dict[str, Any]], fields: ChatTemplateFields) -> TokenPrompt:
        template = self.engine.chat_template
        if template is None:
            raise TemplateError(
                f"The model {self.names[0]} has no chat template", cause="it is not a chat model",
                remedy="Use /v1/completions, or start the server with --chat-template FILE",
            )  # fmt: skip
        options = fields.chat_template_kwargs
        if not fields.continue_final_message:
            # Only a template can say what opens an answer, so it is asked for unless the caller says no.
            text = template.render(messages, add_generation_prompt=fields.add_generation_prompt is not False, **options)
        else:
            last = {**messages[-1], "content": messages[-1]["content"] + _END}
            text = template.render([*messages[:-1], last], add_generation_prompt=False, **options)
            text, found, _ = text.partition(_END)
            if not found:
                raise TemplateError(
                    "The last message cannot be continued", cause="the chat template does not show its text as it is",
                    remedy="Leave continue_final_message out",
                )  # fmt: skip
        tokenizer = self.engine.tokenizer
        if fields.add_special_tokens is None:
            return TokenPrompt(tokenizer.encode_chat(text), text)
        return TokenPrompt(tokenizer.encode(text, add_special=fields.add_special_tokens), text)


async def _off_loop(size: int, work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work) if size > _THREAD_CHARACTERS else work()
