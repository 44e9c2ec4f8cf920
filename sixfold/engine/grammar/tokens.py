"""Our tokenizer as llguidance wants it: every token's bytes, which are special, and how text is cut.

Owns: the translation. Must not know: grammars.
"""

from __future__ import annotations

from typing import Any, Protocol


class GrammarTokenizer(Protocol):
    """What is needed of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_ids(self) -> frozenset[int]: ...
    def encode(self, text: str, /, *, add_special: bool = True, parse_special: bool = True) -> list[int]: ...
    def token_bytes(self, token_id: int, /) -> bytes: ...
    def is_special(self, token_id: int, /) -> bool: ...


def tokens_of(tokenizer: GrammarTokenizer, vocab_size: int) -> Any:
    """llguidance's tokenizer over ``vocab_size`` logits. Takes 0.1 s for 50,000 tokens."""
    import llguidance

    wrapper = llguidance.TokenizerWrapper(_Cutter(tokenizer, vocab_size))
    return llguidance.LLTokenizer(wrapper, n_vocab=vocab_size, eos_token=sorted(tokenizer.eos_ids) or [0])


class _Cutter:
    """Cuts forced text as the model saw it cut, and byte by byte from the longest token down where that is not exact
    (a vocabulary that puts a space before every text)."""

    def __init__(self, tokenizer: GrammarTokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        count = min(tokenizer.vocab_size, vocab_size)
        self.tokens = [tokenizer.token_bytes(i) for i in range(count)]
        self.special_token_ids = [i for i in range(count) if tokenizer.is_special(i)]
        self.eos_token_id = min(tokenizer.eos_ids, default=0)
        self.bos_token_id = tokenizer.bos_id
        special = set(self.special_token_ids)
        self._plain = {data: i for i, data in reversed(list(enumerate(self.tokens))) if data and i not in special}
        self._longest = max(map(len, self._plain), default=1)

    def __call__(self, text: str | bytes) -> list[int]:
        data = text if isinstance(text, bytes) else text.encode()
        try:
            ids = self._tokenizer.encode(data.decode(), add_special=False, parse_special=False)
        except UnicodeDecodeError:
            return self._greedy(data)
        exact = b"".join([self.tokens[i] for i in ids]) == data
        return ids if exact else self._greedy(data)

    def _greedy(self, data: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(data):
            for length in range(min(self._longest, len(data) - at), 0, -1):
                if (found := self._plain.get(data[at : at + length])) is not None:
                    ids.append(found)
                    at += length
                    break
            else:
                at += 1  # a byte that no token writes: nothing can force it
        return ids
