"""The values that travel between stages: what a caller asks for and what comes back.

Owns: sampling parameters and outputs. Must not know: HTTP, the scheduler, or how a model runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sixfold.errors import InvalidRequestError

FinishReason = Literal["stop", "length", "abort", "error"]
MAX_CACHE_SALT = 256  # characters
DRY_BREAKERS = ("\n", ":", '"', "*")  # no repeat goes across them; llama.cpp's


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """What the output must be: exactly one of the first five, with the names and meanings that vLLM users know.

    ``json``: a JSON Schema, as text, an object, or a pydantic model class; kept as text. ``grammar``: Lark or GBNF.
    JSON is written with one space after "," and ":", unless ``whitespace_pattern`` (a regex, matched wherever JSON
    allows whitespace) or ``disable_any_whitespace`` says otherwise. ``disable_additional_properties``: objects with
    ``properties`` have no others, unless their schema says so.
    """

    json: Any = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "json_object", self.json_object or None)
        given = [name for name in STRUCTURED_KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidRequestError(
                f"structured_outputs has {' and '.join(given) or 'nothing that says what the output must be'}",
                remedy=f"Give exactly one of {', '.join(STRUCTURED_KINDS)}",
                param="structured_outputs",
            )
        if self.json is not None and not isinstance(self.json, str):
            schema = self.json.model_json_schema() if hasattr(self.json, "model_json_schema") else self.json
            object.__setattr__(self, "json", json.dumps(schema, ensure_ascii=False))
        if self.choice is not None:
            object.__setattr__(self, "choice", tuple(self.choice))


STRUCTURED_KINDS = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, with the names and meanings that vLLM users know.

    ``temperature`` 0 is greedy. ``top_k`` 0 or -1 means the whole vocabulary. ``logprobs``/``prompt_logprobs`` count
    alternatives (0 = only the chosen token); they are taken from the raw logits, before any penalty or temperature.
    ``seed`` None draws one per request. ``logit_bias``: by token id, or by a text, whose tokens all get it.
    ``bad_words``: texts that must not be completed (vLLM's rule: the last token of one is not drawn after the others).
    ``dry_*``: see ``csrc/history.hpp``. Raises :class:`InvalidRequestError` naming the field that is out of range.
    """

    n: int = 1
    best_of: int | None = None  # choices that are computed, of which the n likeliest a token are given back
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[Any, float] = field(default_factory=dict)  # by token id or text
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    no_repeat_ngram_size: int = 0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = DRY_BREAKERS
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias or {}))
        object.__setattr__(self, "bad_words", tuple(self.bad_words or ()))
        object.__setattr__(self, "dry_sequence_breakers", tuple(self.dry_sequence_breakers or ()))
        if self.allowed_token_ids is not None:
            object.__setattr__(self, "allowed_token_ids", tuple(self.allowed_token_ids))
        self._check("n", self.n >= 1, "at least 1")
        self._check("best_of", self.best_of is None or self.best_of >= self.n, "at least n")
        self._check("temperature", 0.0 <= self.temperature <= 100.0, "between 0 and 100")
        self._check("top_k", self.top_k >= -1, "-1 or 0 (off) or a positive count")
        self._check("top_p", 0.0 < self.top_p <= 1.0, "in (0, 1]")
        self._check("min_p", 0.0 <= self.min_p <= 1.0, "in [0, 1]")
        self._check("typical_p", 0.0 < self.typical_p <= 1.0, "in (0, 1]")
        self._check("repetition_penalty", 0.0 < self.repetition_penalty <= 100.0, "in (0, 100]")
        self._check("presence_penalty", -2.0 <= self.presence_penalty <= 2.0, "between -2 and 2")
        self._check("frequency_penalty", -2.0 <= self.frequency_penalty <= 2.0, "between -2 and 2")
        self._check("allowed_token_ids", self.allowed_token_ids != (), "at least one id, or None for all")
        self._check("bad_words", all(word.strip() for word in self.bad_words), "non-empty strings")
        self._check("no_repeat_ngram_size", 0 <= self.no_repeat_ngram_size < 1 << 31, "0 (off) or a positive count")
        self._check("dry_multiplier", 0.0 <= self.dry_multiplier <= 100.0, "between 0 and 100")
        self._check("dry_base", 1.0 <= self.dry_base <= 100.0, "between 1 and 100")
        self._check("dry_allowed_length", 1 <= self.dry_allowed_length < 1 << 31, "a positive count")
        self._check("dry_penalty_last_n", -1 <= self.dry_penalty_last_n < 1 << 31, "-1 (all) or a count")
        self._check("dry_sequence_breakers", all(self.dry_sequence_breakers), "non-empty strings")
        self._check("stop", all(self.stop), "non-empty strings")
        self._check("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1")
        self._check("min_tokens", self.min_tokens >= 0, "at least 0")
        self._check(
            "min_tokens", self.max_tokens is None or self.min_tokens <= self.max_tokens, "no more than max_tokens"
        )
        self._check("logprobs", self.logprobs is None or self.logprobs >= 0, "at least 0")
        self._check("prompt_logprobs", self.prompt_logprobs is None or self.prompt_logprobs >= 0, "at least 0")
        self._check("logit_bias", all(math.isfinite(v) for v in self.logit_bias.values()), "finite numbers")

    def _check(self, name: str, ok: bool, allowed: str) -> None:
        if not ok:  # NaN fails every comparison above, so it lands here too
            raise InvalidRequestError(
                f"{name}={getattr(self, name)!r} is out of range", remedy=f"Use a value that is {allowed}", param=name
            )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True)
class ReuseContext:
    """Asks that KV of text that was seen elsewhere is used again, though what stands before it differs.

    An approximation. ``recompute``: the share of what is found that is computed all the same, 0 to 1. Raises
    :class:`InvalidRequestError`.
    """

    recompute: float = 0.15

    def __post_init__(self) -> None:
        if not 0.0 <= self.recompute <= 1.0:
            raise _no_reuse(self.recompute)

    @property
    def name(self) -> str:
        """As an approximation that a response names."""
        return f"reuse_{self.recompute:g}"

    @classmethod
    def parse(cls, value: object) -> ReuseContext | None:
        """From true, false or {"recompute": a number}; None: no reuse."""
        if isinstance(value, bool):
            return cls() if value else None
        if isinstance(value, Mapping) and len(value) == 1:
            share = value.get("recompute")
            if isinstance(share, int | float) and not isinstance(share, bool):
                return cls(share)
        raise _no_reuse(value)


def _no_reuse(value: object) -> InvalidRequestError:
    return InvalidRequestError(
        f"reuse_context={str(value)[:80]!r} can not be used", param="reuse_context",
        remedy='Use true, false or {"recompute": SHARE} with a share of 0 to 1',
    )  # fmt: skip


@dataclass(frozen=True)
class TokenLogprob:
    """One token with its log-probability (natural log, raw model distribution) and its rank (1 = most likely)."""

    token_id: int
    logprob: float
    rank: int
    text: str = ""  # the token decoded by itself, with U+FFFD for part of a character
    bytes: bytes = b""


@dataclass(frozen=True)
class PositionLogprobs:
    """The chosen token of one position and the most likely alternatives, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class CompletionOutput:
    """One choice of a request. In a stream it holds only what is new since the last one (delta)."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop string or stop token id that matched; None for end of sequence
    cumulative_logprob: float | None = None  # of a beam search's


@dataclass(frozen=True)
class RequestOutput:
    """What a request has produced: everything (offline) or what is new (stream), told by ``outputs``."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    prompt: str | None = None
    # one entry a prompt token; None for the first, which nothing precedes
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
    # prompt tokens that were not run, since their KV was cached; None: none were looked for (the cache is off)
    num_cached_tokens: int | None = None
    discarded_tokens: int = 0  # generated for choices that are not given back (best_of, beam search)
    # prompt tokens whose KV came from elsewhere in other prompts, and those found there but computed all the same;
    # None: reuse was not asked for
    num_reused_tokens: int | None = None
    num_recomputed_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """What one engine step did, for whoever watches (metrics). Times in seconds."""

    duration: float
    running: int  # sequences, after the step
    waiting: int  # sequences, after the step
    kv_usage: float  # share of the pages in use, 0..1
    tokens: int  # tokens run through the model: prompt, generated and recomputed
    prompt_tokens: int  # prompt tokens of the requests that sampled their first token in this step
    generation_tokens: int  # tokens sampled, and those that a grammar appended
    preemptions: int
    first_token_latencies: tuple[float, ...]  # since arrival, one a sequence that sampled its first token
    inter_token_latencies: tuple[float, ...]  # since the previous token, one a later token


@dataclass(frozen=True, kw_only=True)
class FinishedStats:
    """One finished choice. Times in seconds on the monotonic clock; None if it never came so far."""

    request_id: str
    index: int
    finish_reason: FinishReason
    prompt_tokens: int
    generation_tokens: int
    cached_tokens: int
    n: int
    max_tokens: int
    arrival: float
    first_scheduled: float | None
    first_token: float | None
    finished: float
