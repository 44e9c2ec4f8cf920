"""The sampling parameters that speak of text, in token ids.

Owns: what ``logit_bias`` by text, ``bad_words`` and DRY's breakers mean for a vocabulary. Must not know: requests, how
a token is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from sixfold.types import SamplingParams


class Cutter(Protocol):
    """What is needed of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    def encode(self, text: str, /, *, add_special: bool = True, parse_special: bool = True) -> list[int]: ...
    def token_bytes(self, token_id: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class TokenRules:
    bias: Mapping[int, float] = field(default_factory=dict)
    allowed: tuple[int, ...] = ()  # a bit an id, in words of 32; empty: all ids
    bad_words: tuple[tuple[int, ...], ...] = ()
    dry_breaker_ids: tuple[int, ...] = ()  # sorted
    dry_breakers: tuple[tuple[int, ...], ...] = ()

    @property
    def forbid(self) -> bool:
        """Whether a token may be impossible because of them."""
        return bool(self.allowed or self.bad_words)


NO_RULES = TokenRules()


class RuleMaker:
    """Makes the rules of a vocabulary. Safe to call from any thread."""

    def __init__(self, tokenizer: Cutter, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._containing = lru_cache(256)(self._tokens_with)

    def make(self, params: SamplingParams) -> TokenRules:
        ids: set[int] = set()
        sequences: list[tuple[int, ...]] = []
        for breaker in params.dry_sequence_breakers if params.dry_multiplier else ():
            ids.update(self._containing(breaker.encode()))
            if len(tokens := self._encode(breaker)) > 1:
                sequences.append(tokens)
        return TokenRules(
            bias=self._bias(params.logit_bias),
            allowed=_bits(params.allowed_token_ids, self._vocab_size),
            bad_words=tuple(tokens for word in params.bad_words for tokens in self._spellings(word)),
            dry_breaker_ids=tuple(sorted(ids)),
            dry_breakers=tuple(sequences),
        )

    def _bias(self, given: Mapping[int | str, float]) -> dict[int, float]:
        """A text's amount goes to each of its tokens once; ids that are named twice get the sum."""
        bias: dict[int, float] = {}
        for key, amount in given.items():
            for token_id in (key,) if isinstance(key, int) else set(self._encode(key)):
                bias[token_id] = bias.get(token_id, 0.0) + amount
        return bias

    def _spellings(self, word: str) -> list[tuple[int, ...]]:
        """As at the beginning of a text, and after a space if that only changes the first token (as vLLM has it)."""
        bare, spaced = self._encode(word.lstrip()), self._encode(" " + word.lstrip())
        differs = len(bare) == len(spaced) and bare[:1] != spaced[:1]
        return [bare, spaced] if differs else [bare]

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special=False, parse_special=False))

    def _tokens_with(self, part: bytes) -> tuple[int, ...]:
        bytes_of = self._tokenizer.token_bytes
        count = min(self._tokenizer.vocab_size, self._vocab_size)
        return tuple(i for i in range(count) if part in bytes_of(i))


def _bits(ids: Iterable[int] | None, vocab_size: int) -> tuple[int, ...]:
    if ids is None:
        return ()
    words = [0] * ((vocab_size + 31) // 32)
    for token_id in ids:
        words[token_id >> 5] |= 1 << (token_id & 31)
    return tuple(words)
