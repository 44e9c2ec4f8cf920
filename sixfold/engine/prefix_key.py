"""What two sequences must have in common to share KV pages, and the chained keys that say it.

Owns: the root of a sequence's keys and the digests. Must not know: pages, or where keys are looked up.

    key of a root  SHA-256 over the root's fields, each with its length before it
    key of a page  SHA-256 over the key of the page before it (or the root's) and the page's tokens

A key names all that a page's content depends on: the tokens from the very beginning, and everything in the root.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence as List
from dataclasses import dataclass, fields, replace
from typing import Self

TOKEN_BYTES = 4  # a token in a key


@dataclass(frozen=True, slots=True)
class PrefixRoot:
    """What KV depends on beside the tokens (model to media), and who may share it (salt)."""

    model: str = ""  # digest of the model's content
    kv_format: str = "f16"
    numerics: str = ""  # instruction set and build: what is kept beyond this process must come from the same
    lora: str | None = None  # digest of the adapter
    media: str | None = None  # digest of what stands in the prompt beside text
    salt: str | None = None  # the caller's; only requests of the same salt share

    def of(self, salt: str | None, lora: str | None) -> Self:
        """The root of requests with this salt and adapter."""
        return self if salt is None and lora is None else replace(self, salt=salt, lora=lora)

    def key(self) -> bytes:
        digest = hashlib.sha256()
        for field in fields(self):
            value = getattr(self, field.name)
            # one byte before a text keeps "" and None apart; a lone surrogate must not be an error
            raw = b"" if value is None else b"=" + value.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
        return digest.digest()


def pack(token_ids: List[int]) -> bytes:
    """Token ids as int32: equal bytes are equal tokens, and a prefix of tokens is a prefix of bytes."""
    return array("i", token_ids).tobytes()


def chain(parent_key: bytes, tokens: bytes) -> bytes:
    """The key of a page that holds ``tokens`` (see :func:`pack`) and follows ``parent_key``."""
    return hashlib.sha256(parent_key + tokens).digest()
