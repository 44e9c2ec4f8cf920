"""Chooses the next token of every sequence from its logits, and says how likely it was.

Owns: the translation of sequences into the native sampler's arguments, and of its answers. The order of penalties,
temperature and filters, and what hostile logits mean, is described in ``csrc/sampling.hpp``. A token depends only on
its row of logits, its parameters and (seed, choice, position). Must not know: the scheduler, the model, text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sixfold import _native
from sixfold.engine.constraint import NO_MASKS, Masks, TokenConstraint
from sixfold.engine.token_rules import TokenRules
from sixfold.errors import InvalidRequestError, SixfoldError
from sixfold.types import SamplingParams

SEED_MASK = (1 << 64) - 1


class SamplingRow(Protocol):
    """What the sampler reads of a sequence. ``sampler_state`` is None at first and the sampler's from then on."""

    sampler_state: Any

    @property
    def params(self) -> SamplingParams: ...
    @property
    def rules(self) -> TokenRules: ...
    @property
    def constraint(self) -> TokenConstraint | None: ...
    @property
    def seed(self) -> int: ...  # 64 bits
    @property
    def index(self) -> int: ...  # which of the n choices
    @property
    def prompt_length(self) -> int: ...
    @property
    def token_ids(self) -> list[int]: ...  # prompt and output so far
    @property
    def forbidden_ids(self) -> Iterable[int]: ...  # false if empty


class Sampled(NamedTuple):
    """A chosen token. What follows is of the raw distribution, before penalties and temperature, if asked for."""

    token_id: int
    logprob: float | None = None  # natural log; -inf for a token that is impossible in it
    rank: int | None = None  # 1 + number of tokens with a strictly larger logit
    top: tuple[tuple[int, float], ...] = ()  # (id, logprob), best first, lower id among equals; no impossible ones


@dataclass(frozen=True)
class SamplingFailure:
    """No token for this row; other rows of the step are not concerned."""

    error: SixfoldError


class Sampler:
    """``team``: a native executor whose threads share the rows; None: the caller's thread takes all."""

    def __init__(self, team: _native.Executor | None = None) -> None:
        self._team = team

    def sample(
        self, rows: Sequence[SamplingRow], logits: NDArray[np.float32], masks: Masks = NO_MASKS
    ) -> list[Sampled | SamplingFailure]:
        """Draws the token at index ``len(token_ids)`` of each sequence from its row of ``logits`` [R, vocabulary].

        A mask takes tokens out before everything else, so log-probabilities are of those that are left, as in vLLM.
        """
        for row in rows:
            state = row.sampler_state
            if state is None:
                state = row.sampler_state = _Recipe(row.params, row.rules)
            if not state.plain or row.forbidden_ids or masks.words is not None:
                break
        else:  # the common case of plain greedy decoding needs no arguments but the logits
            return [
                Sampled(token_id) if token_id >= 0 else _failure(token_id, row)
                for token_id, row in zip(_native.argmax(logits, self._team), rows, strict=True)
            ]
        recipes = [_recipe(row) for row in rows]
        drawn = _native.sample(
            logits,
            [recipe.settings for recipe in recipes],
            np.array([_key(row) for row in rows], dtype=np.uint64),
            [row.token_ids if recipe.looks_back else None for row, recipe in zip(rows, recipes, strict=True)],
            [row.forbidden_ids or None for row in rows],
            [recipe.logprobs for recipe in recipes],
            self._team,
            masks.words,
            masks.of,
        )
        return [
            Sampled._make(fields) if fields[0] >= 0 else _failure(fields[0], row)
            for fields, row in zip(drawn, rows, strict=True)
        ]

    def score(self, logits: NDArray[np.float32], targets: NDArray[np.int32], top: int) -> list[Sampled]:
        """How likely ``targets`` [R] are under ``logits`` [R, vocabulary], with ``top`` alternatives each.

        A row whose logits are all NaN or -inf has logprob NaN, rank 0 and no alternatives.
        """
        return [Sampled._make(fields) for fields in _native.score(logits, targets, top)]


class _Recipe:
    """What stays the same for all tokens of a sequence, in the native sampler's form."""

    __slots__ = ("logprobs", "looks_back", "plain", "settings")

    def __init__(self, params: SamplingParams, rules: TokenRules) -> None:
        self.settings = _native.SamplingSettings(
            temperature=params.temperature,
            top_k=min(params.top_k, 1 << 31),
            top_p=params.top_p,
            min_p=params.min_p,
            typical_p=params.typical_p,
            repetition_penalty=params.repetition_penalty,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            logit_bias=rules.bias,
            allowed=rules.allowed,
            bad_words=rules.bad_words,
            no_repeat_ngram=params.no_repeat_ngram_size,
            dry_multiplier=params.dry_multiplier,
            dry_base=params.dry_base,
            dry_allowed_length=params.dry_allowed_length,
            dry_last_n=params.dry_penalty_last_n,
            dry_breaker_ids=rules.dry_breaker_ids,
            dry_breakers=rules.dry_breakers,
        )
        self.logprobs = -1 if params.logprobs is None else params.logprobs
        penalises = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) != (1, 0, 0)
        self.looks_back = bool(
            penalises or rules.bad_words or params.no_repeat_ngram_size or params.dry_multiplier
        )  # at the tokens so far
        self.plain = params.greedy and not (self.looks_back or rules.bias or rules.allowed or self.logprobs >= 0)


def _recipe(row: SamplingRow) -> _Recipe:
    if row.sampler_state is None:
        row.sampler_state = _Recipe(row.params, row.rules)
    recipe: _Recipe = row.sampler_state
    return recipe


def _key(row: SamplingRow) -> tuple[int, int, int, int]:
    return row.seed & SEED_MASK, row.index, len(row.token_ids), row.prompt_length


def _failure(status: int, row: SamplingRow) -> SamplingFailure:
    if row.constraint is not None and row.constraint.error is not None:
        return SamplingFailure(row.constraint.error)
    if status == -2:
        return SamplingFailure(
            InvalidRequestError(
                "logit_bias names a token id outside the vocabulary",
                remedy="Use ids of this model's tokens",
                param="logit_bias",
            )
        )
    return SamplingFailure(
        SixfoldError(
            "No token can be sampled",
            cause="every logit of the model is NaN or -inf, or forbidden by what the request demands (min_tokens, "
            "bad_words, allowed_token_ids, no_repeat_ngram_size, structured_outputs)",
            remedy="Check the model file; if other requests succeed, relax the parameters of this one",
        )
    )
