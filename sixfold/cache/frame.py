"""An entry as bytes that prove themselves: the full key, the payload, a checksum, and a mark that it is whole.

Owns: the format. Must not know: where the bytes lie.

    magic 8 | key length u32 | payload length u64 | key | payload | BLAKE2b-256 of all before | commit mark 8

Whatever is torn, stale, foreign or flipped does not decode for the key that is asked for: it is a miss, never an
answer.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

_HEADER = struct.Struct("<8sIQ")
_MAGIC = b"SIXKV\x00\x00\x01"
_COMMIT = b"\x01COMMIT\x01"
_CHECKSUM = 32
MAX_KEY = 1 << 16


@dataclass(frozen=True, slots=True)
class CacheKey:
    """``digest`` finds an entry; ``content`` is all that its payload depends on, compared byte by byte."""

    digest: bytes
    content: bytes


def overhead(key: CacheKey) -> int:
    """Bytes of an entry beside its payload."""
    return _HEADER.size + len(key.content) + _CHECKSUM + len(_COMMIT)


def encode(key: CacheKey, payload: bytes) -> bytes:
    if len(key.content) > MAX_KEY:
        raise ValueError(f"a key of {len(key.content)} bytes is too long")
    head = _HEADER.pack(_MAGIC, len(key.content), len(payload)) + key.content
    return b"".join((head, payload, _checksum(head, payload), _COMMIT))


def decode(key: CacheKey, blob: bytes) -> bytes | None:
    """The payload; None unless the bytes are a whole entry of exactly this key."""
    start = _HEADER.size + len(key.content)
    if len(blob) < overhead(key) or not blob.endswith(_COMMIT):
        return None
    magic, key_length, length = _HEADER.unpack_from(blob)
    if magic != _MAGIC or key_length != len(key.content) or length != len(blob) - overhead(key):
        return None
    if blob[_HEADER.size : start] != key.content:
        return None
    payload = blob[start : start + length]
    checksum = blob[start + length : start + length + _CHECKSUM]
    return payload if checksum == _checksum(blob[:start], payload) else None


def _checksum(head: bytes, payload: bytes) -> bytes:
    digest = hashlib.blake2b(head, digest_size=_CHECKSUM)
    digest.update(payload)
    return digest.digest()
