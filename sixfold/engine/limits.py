"""What may be queued: turns a caller's prompt and parameters into a Request, or says why not.

Owns: the limits of this model and this KV memory. Must not know: what is queued now. Safe to call from any thread.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from collections.abc import Sequence as List
from dataclasses import dataclass, field

from sixfold.engine.adapter import Adapter
from sixfold.engine.kv_cache import pages_for
from sixfold.engine.request_rules import RequestRules
from sixfold.engine.sequence import Request
from sixfold.engine.token_rules import NO_RULES
from sixfold.errors import ConfigError, ContextLengthError, InvalidRequestError
from sixfold.runtime.batch import PAGE_SIZE
from sixfold.types import MAX_CACHE_SALT, ReuseContext, SamplingParams


@dataclass(frozen=True)
class Limits:
    vocab_size: int
    eos_ids: frozenset[int]
    max_model_len: int  # tokens, prompt and output together
    num_pages: int
    seed: int = 0  # base of the seeds for requests that bring none
    rules: RequestRules | None = None  # None: no parameter may speak of text (tests)
    reuse: ReuseContext | None = None  # of requests that do not say
    can_reuse: bool = True
    _seeds: random.Random = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_seeds", random.Random(self.seed))
        if self.reuse is not None and not self.can_reuse:
            raise ConfigError(
                "reuse_context can not be used with int4 KV", cause="its tokens are not moved",
                remedy="Use kv_format int8 or f16, or leave reuse_context out", param="reuse_context",
            )  # fmt: skip

    def accept(
        self,
        request_id: str,
        prompt_ids: List[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        arrival: float = 0.0,
        prompt: str | None = None,
        cache_salt: str | None = None,
        reuse_context: object = None,
        lora: Adapter | None = None,
    ) -> Request:
        """Raises InvalidRequestError or ContextLengthError with the numbers and the option to change."""
        self.check(prompt_ids, params)
        _check_salt(cache_salt)
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.eos_ids)
        rules, constrain = NO_RULES, None
        if self.rules is not None:
            rules = self.rules.tokens(params)
            constrain = self.rules.constraint(params, stop_ids)
        return Request(
            id=request_id,
            prompt_ids=tuple(prompt_ids),
            params=params,
            max_tokens=self._max_tokens(len(prompt_ids), params.max_tokens),
            seed=(self._seeds.getrandbits(64) if params.seed is None else params.seed) & (2**64 - 1),
            stop_ids=stop_ids,
            priority=priority,
            arrival=arrival,
            prompt=prompt,
            cache_salt=cache_salt,
            rules=rules,
            constrain=constrain,
            reuse=self.reuse_of(reuse_context),
            lora=lora,
        )

    async def prepare(self, params: SamplingParams) -> object:
        """Does the part of :meth:`accept` that may take long, on another thread; to be kept until then. Raises
        InvalidRequestError."""
        return None if self.rules is None else await self.rules.prepare(params)

    def reuse_of(self, asked: object) -> ReuseContext | None:
        """What a request asks for; None: what this engine does by default. Raises InvalidRequestError."""
        if asked is None or (asked is True and self.reuse is not None):
            return self.reuse
        reuse = asked if isinstance(asked, ReuseContext) else ReuseContext.parse(asked)
        if reuse is not None and not self.can_reuse:
            raise InvalidRequestError(
                "reuse_context is not available here", cause="this engine keeps KV in int4, whose tokens are not moved",
                remedy="Leave it out, or start the engine with kv_format int8 or f16", param="reuse_context",
            )  # fmt: skip
        return reuse

    def check(self, prompt_ids: List[int], params: SamplingParams) -> None:
        """Raises what :meth:`accept` raises."""
        if params.best_of is not None:
            raise InvalidRequestError(
                "best_of is not available in a stream", cause="the best choice is known at the end",
                remedy="Use LLM.generate(), or leave it out", param="best_of",
            )  # fmt: skip
        self._check_ids(prompt_ids, "prompt")
        self._check_ids((key for key in params.logit_bias if isinstance(key, int)), "logit_bias")
        self._check_ids(params.allowed_token_ids or (), "allowed_token_ids")
        self._check_ids(params.stop_token_ids, "stop_token_ids")
        if not prompt_ids:
            raise InvalidRequestError(
                "The prompt is empty", cause="a model needs at least one token to go on from",
                remedy="Send at least one token", param="prompt",
            )  # fmt: skip
        self._max_tokens(len(prompt_ids), params.max_tokens)

    def _check_ids(self, ids: Iterable[int], param: str) -> None:
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise InvalidRequestError(
                    f"{param} has the token id {token_id}",
                    cause=f"the vocabulary has the ids 0 to {self.vocab_size - 1}",
                    remedy="Use ids of this model's tokenizer",
                    param=param,
                )

    def _max_tokens(self, prompt_length: int, wanted: int | None) -> int:
        """The output limit that fits the context and, running alone, the KV memory."""
        room = self.max_model_len - prompt_length
        if room < (wanted or 1):
            raise ContextLengthError(
                _too_long(prompt_length, wanted),
                cause=f"the context is {self.max_model_len} tokens (max_model_len)",
                remedy="Shorten the prompt, lower max_tokens, or raise max_model_len if the model allows it",
                param="prompt" if room < 1 else "max_tokens",
            )
        memory = self.num_pages * PAGE_SIZE + 1 - prompt_length  # the last token is never run, so it needs no slot
        if memory < (wanted or 1):
            raise ContextLengthError(
                _too_long(prompt_length, wanted),
                cause=f"the KV memory holds {self.num_pages} pages of {PAGE_SIZE} tokens and "
                f"{pages_for(prompt_length + (wanted or 1) - 1)} pages are needed",
                remedy="Shorten the prompt, lower max_tokens, or raise kv_memory",
                param="prompt" if memory < 1 else "max_tokens",
            )
        return min(room, memory) if wanted is None else wanted


def _check_salt(salt: str | None) -> None:
    if salt is not None and not 1 <= len(salt) <= MAX_CACHE_SALT:
        raise InvalidRequestError(
            f"cache_salt has {len(salt)} characters", remedy=f"Use 1 to {MAX_CACHE_SALT}, or leave it out",
            param="cache_salt",
        )  # fmt: skip


def _too_long(prompt_length: int, wanted: int | None) -> str:
    output = "at least one token of output" if wanted is None else f"max_tokens={wanted}"
    return f"The prompt of {prompt_length} tokens and {output} do not fit"
