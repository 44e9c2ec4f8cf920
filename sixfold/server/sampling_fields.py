"""The request fields that chat and text completions share, and the step from them to ``SamplingParams``.

Owns: their types, defaults and limits, and which known fields are refused by name. Must not know: prompts, responses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from sixfold.config import ServerConfig
from sixfold.errors import InvalidRequestError
from sixfold.server.body import clip, kind_of, unknown_field
from sixfold.types import MAX_CACHE_SALT, ReuseContext, SamplingParams

# Bounds that native code and the seed's arithmetic can hold; meaning is checked by SamplingParams.
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
CacheSalt = Annotated[str, Field(min_length=1, max_length=MAX_CACHE_SALT)]


def _wrong(name: str, value: Any, wanted: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} is {kind_of(value)} {clip(value)}", remedy=f"Send {wanted}", param=name)


def _stop(value: Any) -> list[str]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(s, str) and s for s in strings):
        raise _wrong("stop", value, "a non-empty string or an array of them")
    return strings


def _stop_token_ids(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i < 2**31 for i in value):
        raise _wrong("stop_token_ids", value, "an array of token ids")
    return value


def _logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise _wrong("logit_bias", value, "an object from token id to a number between -100 and 100")
    bias: dict[int, float] = {}
    for key, amount in value.items():
        # isascii: "²".isdigit() holds, but is no number.
        if not (key.isascii() and key.isdigit() and len(key) <= 9):
            raise _wrong("logit_bias", key, "token ids as keys, written as decimal strings")
        if type(amount) not in (int, float) or not -100 <= amount <= 100:
            raise _wrong("logit_bias", amount, "numbers between -100 and 100")
        bias[int(key)] = float(amount)
    return bias


def _reuse_context(value: Any) -> ReuseContext | bool | None:
    return value if value is None or isinstance(value, bool) else ReuseContext.parse(value)


ReuseField = Annotated[
    ReuseContext | bool | None,
    PlainValidator(_reuse_context),
    WithJsonSchema(
        {"anyOf": [{"type": "boolean"}, {"type": "object", "properties": {"recompute": {"type": "number"}}}]}
    ),
]
Stop = Annotated[
    list[str],
    PlainValidator(_stop),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
TokenIds = Annotated[
    list[int], PlainValidator(_stop_token_ids), WithJsonSchema({"type": "array", "items": {"type": "integer"}})
]
LogitBias = Annotated[
    dict[int, float],
    PlainValidator(_logit_bias),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number"}}),
]


@dataclass(frozen=True)
class StreamOptions:
    include_usage: bool = False  # one more chunk at the end, without choices
    continuous_usage_stats: bool = False  # the usage so far in every chunk


def _stream_options(value: Any) -> StreamOptions:
    known = ("include_usage", "continuous_usage_stats")
    if not isinstance(value, dict):
        raise _wrong("stream_options", value, "an object")
    for name, flag in value.items():
        if name not in known:
            raise unknown_field(name, known, "stream_options.")
        if flag is not None and not isinstance(flag, bool):
            raise _wrong(f"stream_options.{name}", flag, "true or false")
    continuous = bool(value.get("continuous_usage_stats"))
    return StreamOptions(
        include_usage=bool(value.get("include_usage")) or continuous, continuous_usage_stats=continuous
    )


@dataclass(frozen=True)
class Refusal:
    """A field of the wider API that is known here and refused unless it asks for nothing (``harmless``)."""

    harmless: Callable[[Any], bool]
    why: str


def _one_of(*values: Any) -> Callable[[Any], bool]:
    # bool and int compare equal in Python, but not in JSON
    return lambda value: any(type(value) is type(v) and value == v for v in values)


def _empty(value: Any) -> bool:
    return value in ("", [], {})


def _plain_text(value: Any) -> bool:
    return bool(value == {"type": "text"})


_LATER = "structured output is not built into this server yet"
REFUSED: Mapping[str, Refusal] = {
    "response_format": Refusal(_plain_text, _LATER),
    "structured_outputs": Refusal(_empty, _LATER),
    "guided_json": Refusal(_empty, _LATER),
    "guided_regex": Refusal(_empty, _LATER),
    "guided_choice": Refusal(_empty, _LATER),
    "guided_grammar": Refusal(_empty, _LATER),
    "best_of": Refusal(_one_of(1), "only n is supported; it returns every choice that is computed"),
    "use_beam_search": Refusal(_one_of(False), "beam search is not supported"),
    "length_penalty": Refusal(_one_of(1, 1.0), "it belongs to beam search, which is not supported"),
    "early_stopping": Refusal(_one_of(False), "it belongs to beam search, which is not supported"),
    "truncate_prompt_tokens": Refusal(_one_of(-1), "prompts are never cut; shorten the prompt instead"),
    "allowed_token_ids": Refusal(_empty, "it is not supported; logit_bias can favour tokens"),
    "bad_words": Refusal(_empty, "it is not supported; logit_bias can forbid tokens"),
    "logits_processors": Refusal(_empty, "code from clients is never run"),
    "prompt_embeds": Refusal(_empty, "prompts are text or token ids"),
    "return_token_ids": Refusal(_one_of(False), "it is not supported; use return_tokens_as_token_ids with logprobs"),
    "spaces_between_special_tokens": Refusal(_one_of(True), "special tokens are always kept as the model writes them"),
    "kv_transfer_params": Refusal(_empty, "KV transfer is not supported"),
    "vllm_xargs": Refusal(_empty, "it is not supported"),
    "service_tier": Refusal(_one_of("auto", "default"), "there is one service tier"),
    "store": Refusal(_one_of(False), "completions are not kept by this server"),
    "moderation": Refusal(_empty, "it is not supported"),
}


_FLAG = {"type": "boolean"}
StreamOptionsField = Annotated[
    StreamOptions | None,
    PlainValidator(_stream_options),
    WithJsonSchema({"type": "object", "properties": {"include_usage": _FLAG, "continuous_usage_stats": _FLAG}}),
]


class SamplingFields(BaseModel):
    """Strict JSON types: "5" is not 5, true is not 1. Fields of type ``Any`` are the refused ones."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    refused: ClassVar[Mapping[str, Refusal]] = REFUSED

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptionsField = None
    n: Int32 = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: Int32 = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: LogitBias = Field(default_factory=dict)
    seed: Int64 | None = None
    stop: Stop = Field(default_factory=list)
    stop_token_ids: TokenIds = Field(default_factory=list)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: Int32 | None = None
    min_tokens: Int32 = 0
    prompt_logprobs: Int32 | None = None
    skip_special_tokens: bool = True
    return_tokens_as_token_ids: bool = False
    priority: Int32 = 0
    cache_salt: CacheSalt | None = None
    reuse_context: ReuseField = None  # None: as the server does by default
    # Labels for the caller's own books: they change nothing here, so they are welcome.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Known and refused, see REFUSED.
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    best_of: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    early_stopping: Any = None
    truncate_prompt_tokens: Any = None
    allowed_token_ids: Any = None
    bad_words: Any = None
    logits_processors: Any = None
    prompt_embeds: Any = None
    return_token_ids: Any = None
    spaces_between_special_tokens: Any = None
    kv_transfer_params: Any = None
    vllm_xargs: Any = None
    service_tier: Any = None
    store: Any = None
    moderation: Any = None

    def check_refused(self) -> None:
        for name in self.model_fields_set & self.refused.keys():
            value, refusal = getattr(self, name), self.refused[name]
            if not refusal.harmless(value):
                raise InvalidRequestError(
                    f"{name}={clip(value)} is not supported", cause=refusal.why, remedy=f"Leave {name} out", param=name
                )

    def check_stream(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "stream_options is given without stream", remedy="Set stream to true or leave stream_options out",
                param="stream_options",
            )  # fmt: skip
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequestError(
                "prompt_logprobs is not available in a stream", remedy="Set stream to false", param="prompt_logprobs"
            )

    def sampling(
        self, config: ServerConfig, *, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None
    ) -> SamplingParams:
        """The engine's view of these fields. Raises :class:`InvalidRequestError` naming what is out of range."""
        self.check_refused()
        self.check_stream()
        for name, amount, limit, option in (
            ("n", self.n, config.max_n, "max_n"),
            ("logprobs", logprobs, config.max_logprobs, "max_logprobs"),
            ("prompt_logprobs", prompt_logprobs, config.max_logprobs, "max_logprobs"),
            ("stop", len(self.stop), config.max_stop, "max_stop"),
            ("stop_token_ids", len(self.stop_token_ids), config.max_stop, "max_stop"),
        ):
            check_limit(name, amount, limit, option)
        return SamplingParams(
            n=self.n, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p,
            typical_p=self.typical_p, repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty, frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias, seed=self.seed, stop=tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            include_stop_str_in_output=self.include_stop_str_in_output, ignore_eos=self.ignore_eos,
            max_tokens=max_tokens, min_tokens=self.min_tokens, logprobs=logprobs, prompt_logprobs=prompt_logprobs,
            skip_special_tokens=self.skip_special_tokens,
        )  # fmt: skip


def check_limit(name: str, amount: int | None, limit: int, option: str) -> None:
    if amount is not None and amount > limit:
        raise InvalidRequestError(
            f"{name} asks for {amount}, and this server allows {limit}",
            remedy=f"Ask for at most {limit}, or start the server with a larger {option}",
            param=name,
        )
