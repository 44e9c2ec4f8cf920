"""Requests of the OpenAI API (with vLLM's extra fields) as validated models, and what the engine needs of them.

Owns: the request models and their defaults. Must not know: HTTP, responses, or how a request runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from sixfold.config import ServerConfig
from sixfold.errors import InvalidRequestError
from sixfold.server.body import clip, kind_of
from sixfold.server.messages import parse_messages
from sixfold.server.sampling_fields import REFUSED, Int32, Refusal, SamplingFields, check_limit
from sixfold.types import SamplingParams


@dataclass(frozen=True)
class Prompt:
    """A prompt of ``/v1/completions`` or ``/tokenize``: text or token ids, never both."""

    text: str | None = None
    ids: tuple[int, ...] | None = None


def _token_ids(value: Sequence[Any], where: str) -> tuple[int, ...]:
    for i, token in enumerate(value):
        if type(token) is not int or not 0 <= token < 2**31:
            raise InvalidRequestError(
                f"{where}[{i}] is {clip(token)}", remedy="Send token ids of the model", param=where
            )
    return tuple(value)


def _prompts(value: Any) -> list[Prompt]:
    """Text, a list of texts, token ids, or a list of token-id lists; the first element decides which list it is."""
    if isinstance(value, str):
        return [Prompt(text=value)]
    if not isinstance(value, list) or not value:
        what = "prompt is empty" if value == [] else f"prompt is {kind_of(value)}"
        raise InvalidRequestError(
            what, remedy="Send text, an array of texts, token ids, or an array of token-id arrays", param="prompt"
        )
    if type(value[0]) is int:
        return [Prompt(ids=_token_ids(value, "prompt"))]
    prompts = []
    for i, item in enumerate(value):
        if type(item) is not type(value[0]) or not isinstance(item, str | list):
            raise InvalidRequestError(
                f"prompt[{i}] is {kind_of(item)}", remedy="Send either texts or token-id arrays, not a mixture",
                param="prompt",
            )  # fmt: skip
        prompts.append(Prompt(text=item) if isinstance(item, str) else Prompt(ids=_token_ids(item, f"prompt[{i}]")))
    return prompts


def _tokens(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise InvalidRequestError(f"tokens is {kind_of(value)}", remedy="Send an array of token ids", param="tokens")
    return _token_ids(value, "tokens")


_MESSAGES_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"type": "string"}, "content": {}, "name": {"type": "string"}},
    },
}
Prompts = Annotated[
    list[Prompt],
    PlainValidator(_prompts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {}}]}),
]
Messages = Annotated[list[dict[str, Any]], PlainValidator(parse_messages), WithJsonSchema(_MESSAGES_SCHEMA)]
Tokens = Annotated[
    tuple[int, ...], PlainValidator(_tokens), WithJsonSchema({"type": "array", "items": {"type": "integer"}})
]

_NO_TOOLS = "tool calls are not built into this server yet"
_NO_MEDIA = "this model reads and writes text only"


def _chat_refusals() -> dict[str, Refusal]:
    def empty(value: Any) -> bool:
        return value in ("", [], {})

    return {
        **REFUSED,
        "tools": Refusal(empty, _NO_TOOLS),
        "tool_choice": Refusal(lambda v: v in ("none", "auto"), _NO_TOOLS),
        "parallel_tool_calls": Refusal(lambda v: isinstance(v, bool), _NO_TOOLS),
        "functions": Refusal(empty, _NO_TOOLS),
        "function_call": Refusal(lambda v: v in ("none", "auto"), _NO_TOOLS),
        "modalities": Refusal(lambda v: v == ["text"], _NO_MEDIA),
        "audio": Refusal(empty, _NO_MEDIA),
        "prediction": Refusal(empty, "predicted output is not supported"),
        "reasoning_effort": Refusal(lambda v: v == "none", "it is not supported; use chat_template_kwargs"),
        "include_reasoning": Refusal(lambda v: isinstance(v, bool), "it is not supported"),
        "verbosity": Refusal(lambda v: v == "medium", "it is not supported; ask in the prompt"),
        "web_search_options": Refusal(lambda v: False, "this server does not search the web"),
        "documents": Refusal(empty, "documents are not supported; put them into a message"),
        "chat_template": Refusal(lambda v: False, "templates from clients are not run; start the server with one"),
        "echo": Refusal(lambda v: v is False, "it is not supported for chat"),
        "mm_processor_kwargs": Refusal(empty, _NO_MEDIA),
    }


class ChatTemplateFields(BaseModel):
    """What decides how messages become a prompt; shared by chat and ``/tokenize``."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    def check_template_fields(self, messages: list[dict[str, Any]]) -> None:
        for name in ("self", "messages", "tools", "add_generation_prompt"):
            if name in self.chat_template_kwargs:
                raise InvalidRequestError(
                    f"chat_template_kwargs.{name} is set by the server", remedy="Leave it out",
                    param="chat_template_kwargs",
                )  # fmt: skip
        if not self.continue_final_message:
            return
        if self.add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt are both true",
                cause="the one continues the last message, the other opens a new one",
                remedy="Set one of them to false", param="continue_final_message",
            )  # fmt: skip
        if not messages[-1]["content"]:
            raise InvalidRequestError(
                "continue_final_message is set and the last message has no text", remedy="Give it the text to continue",
                param="continue_final_message",
            )  # fmt: skip


class ChatRequest(SamplingFields, ChatTemplateFields):
    refused: ClassVar = _chat_refusals()

    messages: Messages
    max_completion_tokens: Int32 | None = None
    logprobs: bool = False
    top_logprobs: Int32 | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    include_reasoning: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    documents: Any = None
    chat_template: Any = None
    echo: Any = None
    mm_processor_kwargs: Any = None

    def check_refused(self) -> None:
        if self.tool_choice == "none":
            # The caller forbids every call, so its tools ask for nothing.
            self.model_fields_set.discard("tools")
        super().check_refused()

    def params(self, config: ServerConfig) -> SamplingParams:
        """``max_tokens`` None: whatever context the prompt leaves."""
        limit = self.max_completion_tokens
        if limit is not None and self.max_tokens is not None and limit != self.max_tokens:
            raise InvalidRequestError(
                f"max_tokens={self.max_tokens} and max_completion_tokens={limit} differ",
                cause="max_tokens is the older name of max_completion_tokens", remedy="Send one of them",
                param="max_completion_tokens",
            )  # fmt: skip
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError(
                "top_logprobs is given without logprobs", remedy="Set logprobs to true", param="top_logprobs"
            )
        self.check_template_fields(self.messages)
        return self.sampling(
            config,
            max_tokens=limit if limit is not None else self.max_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            prompt_logprobs=self.prompt_logprobs,
        )


class CompletionRequest(SamplingFields):
    refused: ClassVar = {
        **REFUSED,
        "suffix": Refusal(lambda v: v == "", "filling in the middle is not supported"),
    }

    prompt: Prompts
    logprobs: Int32 | None = None
    echo: bool = False
    add_special_tokens: bool = True
    suffix: Any = None

    @property
    def only_prompt(self) -> bool:
        """``max_tokens`` 0 with ``echo``: the caller wants the prompt back, usually with its log-probabilities."""
        return self.echo and self.max_tokens == 0

    def params(self, config: ServerConfig) -> SamplingParams:
        check_limit("prompt", len(self.prompt), config.max_prompts, "max_prompts")
        prompt_logprobs = self.prompt_logprobs
        if self.echo and self.logprobs is not None:
            prompt_logprobs = max(self.logprobs, prompt_logprobs or 0)
        max_tokens = 16 if self.max_tokens is None else self.max_tokens
        return self.sampling(
            config,
            max_tokens=1 if self.only_prompt else max_tokens,
            logprobs=self.logprobs,
            prompt_logprobs=prompt_logprobs,
        )


class TokenizeRequest(ChatTemplateFields):
    """Either ``prompt`` or ``messages``; special tokens default to on for text, to the template's for messages."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    return_token_strs: bool = False

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError("Exactly one of prompt and messages is needed", remedy="Send one of them")
        if self.messages is not None:
            self.check_template_fields(self.messages)


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    model: str | None = None
    tokens: Tokens
