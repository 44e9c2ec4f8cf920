"""The request fields that chat and text completions share, and the step from them to ``SamplingParams``.

Owns: their types, defaults and limits, and which known fields are refused by name. Must not know: prompts, responses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from sixfold.config import ServerConfig
from sixfold.engine.beam_search import BeamSearchParams
from sixfold.errors import InvalidRequestError
from sixfold.server.body import clip, kind_of, unknown_field
from sixfold.server.structured_fields import STRUCTURED_FIELDS, structured_outputs
from sixfold.types import DRY_BREAKERS, MAX_CACHE_SALT, ReuseContext, SamplingParams

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


def _logit_bias(value: Any) -> dict[int | str, float]:
    """OpenAI's object from token id to amount, where any other key is a text; or llama.cpp's array of pairs, in which
    ``false`` forbids."""
    if not isinstance(value, dict | list):
        raise _wrong("logit_bias", value, "an object from token id or text to a number between -100 and 100")
    bias: dict[int | str, float] = {}
    for pair in value.items() if isinstance(value, dict) else value:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise _wrong("logit_bias", pair, "pairs of a token id or text and a number")
        key, amount = pair
        # isascii: "²".isdigit() holds, but is no number.
        if isinstance(value, dict) and key.isascii() and key.isdigit() and len(key) <= 9:
            key = int(key)
        if key == "" or type(key) not in (int, str) or (isinstance(key, int) and not 0 <= key < 2**31):
            raise _wrong("logit_bias", key, "token ids or texts as keys")
        if isinstance(value, list) and amount is False:
            amount = -100
        if type(amount) not in (int, float) or not -100 <= amount <= 100:
            raise _wrong("logit_bias", amount, "numbers between -100 and 100")
        bias[key] = float(amount)
    return bias


def _texts(name: str) -> Callable[[Any], list[str]]:
    def check(value: Any) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(s, str) and s for s in value):
            raise _wrong(name, value, "an array of non-empty strings")
        return value

    return check


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
    dict[int | str, float],
    PlainValidator(_logit_bias),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number"}}),
]


_STRINGS = {"type": "array", "items": {"type": "string"}}
BadWords = Annotated[list[str], PlainValidator(_texts("bad_words")), WithJsonSchema(_STRINGS)]
Breakers = Annotated[list[str], PlainValidator(_texts("dry_sequence_breakers")), WithJsonSchema(_STRINGS)]


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


REFUSED: Mapping[str, Refusal] = {
    "logits_processors": Refusal(_empty, "code from clients is never run"),
    "prompt_embeds": Refusal(_empty, "prompts are text or token ids"),
    "return_token_ids": Refusal(_one_of(False), "it is not supported; use return_tokens_as_token_ids with logprobs"),
    "kv_transfer_params": Refusal(_empty, "KV transfer is not supported"),
    "vllm_xargs": Refusal(_empty, "it is not supported"),
    "service_tier": Refusal(_one_of("auto", "default"), "there is one service tier"),
    "store": Refusal(_one_of(False), "completions are not kept by this server"),
    "moderation": Refusal(_empty, "it is not supported"),
}


MAX_TEXTS = 128
# What beam search can not follow.
NO_SEARCH = frozenset((
    "stream", "best_of", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "logit_bias", "stop", "stop_token_ids", "allowed_token_ids", "bad_words",
    "no_repeat_ngram_size", "dry_multiplier", "min_tokens", "prompt_logprobs", "skip_special_tokens",
    *STRUCTURED_FIELDS,
))  # fmt: skip

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
    best_of: Int32 | None = None
    use_beam_search: bool = False
    length_penalty: float = 1.0
    early_stopping: bool = False
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
    allowed_token_ids: TokenIds | None = None
    bad_words: BadWords = Field(default_factory=list)
    no_repeat_ngram_size: Int32 = 0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: Int32 = 2
    dry_penalty_last_n: Int32 = -1
    dry_sequence_breakers: Breakers = Field(default_factory=lambda: list(DRY_BREAKERS))
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: Int32 | None = None
    min_tokens: Int32 = 0
    prompt_logprobs: Int32 | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True  # texts hold what the tokens hold, and no spaces are added either way
    truncate_prompt_tokens: Int32 | None = None
    return_tokens_as_token_ids: bool = False
    priority: Int32 = 0
    cache_salt: CacheSalt | None = None
    reuse_context: ReuseField = None  # None: as the server does by default
    # Labels for the caller's own books: they change nothing here, so they are welcome.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Read by structured_fields.py.
    response_format: Any = None
    structured_outputs: Any = None
    grammar: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_whitespace_pattern: Any = None
    guided_decoding_backend: Any = None
    # Known and refused, see REFUSED.
    logits_processors: Any = None
    prompt_embeds: Any = None
    return_token_ids: Any = None
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
        for name, whole in (("best_of", self.best_of not in (None, self.n)), ("use_beam_search", self.use_beam_search)):
            if self.stream and whole:
                raise InvalidRequestError(
                    f"{name} is not available in a stream", cause="what is best is known at the end",
                    remedy="Set stream to false", param=name,
                )  # fmt: skip
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "stream_options is given without stream", remedy="Set stream to true or leave stream_options out",
                param="stream_options",
            )  # fmt: skip
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequestError(
                "prompt_logprobs is not available in a stream", remedy="Set stream to false", param="prompt_logprobs"
            )

    def check_search(self) -> None:
        """Beam search follows the most likely tokens: what would choose others is refused, and what belongs to it is
        refused without it."""
        if self.use_beam_search:
            alien = {name for name in self.model_fields_set & NO_SEARCH if getattr(self, name) != _default(name)}
            alien |= set() if self.temperature in (0.0, 1.0) else {"temperature"}
            cause = "beam search follows the most likely tokens"
        else:
            alien = {name for name in ("length_penalty", "early_stopping") if getattr(self, name) != _default(name)}
            cause = "it belongs to beam search"
        for name in sorted(alien):
            raise InvalidRequestError(
                f"{name} is given {'with' if self.use_beam_search else 'without'} use_beam_search", cause=cause,
                remedy="Leave it out", param=name,
            )  # fmt: skip

    def search(self, params: SamplingParams) -> BeamSearchParams | None:
        """None: it is not asked for."""
        if not self.use_beam_search:
            return None
        if params.max_tokens is None:
            raise InvalidRequestError(
                "use_beam_search is given without max_tokens", cause="a beam grows until then", remedy="Set max_tokens",
                param="max_tokens",
            )  # fmt: skip
        return BeamSearchParams(
            beam_width=self.n, max_tokens=params.max_tokens, logprobs=params.logprobs, ignore_eos=self.ignore_eos,
            length_penalty=self.length_penalty, early_stopping=self.early_stopping,
        )  # fmt: skip

    def sampling(
        self, config: ServerConfig, *, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None
    ) -> SamplingParams:
        """The engine's view of these fields. Raises :class:`InvalidRequestError` naming what is out of range."""
        self.check_refused()
        self.check_stream()
        self.check_search()
        for name, amount, limit, option in (
            ("n", self.n, config.max_n, "max_n"),
            ("best_of", self.best_of, config.max_n, "max_n"),
            ("bad_words", len(self.bad_words), MAX_TEXTS, None),
            ("dry_sequence_breakers", len(self.dry_sequence_breakers), MAX_TEXTS, None),
            ("logprobs", logprobs, config.max_logprobs, "max_logprobs"),
            ("prompt_logprobs", prompt_logprobs, config.max_logprobs, "max_logprobs"),
            ("stop", len(self.stop), config.max_stop, "max_stop"),
            ("stop_token_ids", len(self.stop_token_ids), config.max_stop, "max_stop"),
        ):
            check_limit(name, amount, limit, option)
        demands = {name: getattr(self, name) for name in sorted(self.model_fields_set & STRUCTURED_FIELDS)}
        return SamplingParams(
            n=self.n, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p,
            typical_p=self.typical_p, repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty, frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias, seed=self.seed, stop=tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            include_stop_str_in_output=self.include_stop_str_in_output, ignore_eos=self.ignore_eos,
            max_tokens=max_tokens, min_tokens=self.min_tokens, logprobs=logprobs, prompt_logprobs=prompt_logprobs,
            skip_special_tokens=self.skip_special_tokens,
            best_of=None if self.best_of in (None, self.n) else self.best_of,
            allowed_token_ids=None if self.allowed_token_ids is None else tuple(self.allowed_token_ids),
            bad_words=tuple(self.bad_words), no_repeat_ngram_size=self.no_repeat_ngram_size,
            dry_multiplier=self.dry_multiplier, dry_base=self.dry_base, dry_allowed_length=self.dry_allowed_length,
            dry_penalty_last_n=self.dry_penalty_last_n,
            dry_sequence_breakers=tuple(self.dry_sequence_breakers),
            structured_outputs=structured_outputs(demands),
        )  # fmt: skip


def _default(name: str) -> Any:
    return SamplingFields.model_fields[name].get_default(call_default_factory=True)


def check_limit(name: str, amount: int | None, limit: int, option: str | None) -> None:
    if amount is not None and amount > limit:
        raise InvalidRequestError(
            f"{name} asks for {amount}, and this server allows {limit}",
            remedy=f"Ask for at most {limit}" + (f", or start the server with a larger {option}" if option else ""),
            param=name,
        )
