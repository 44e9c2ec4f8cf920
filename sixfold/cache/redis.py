"""Redis, or what speaks its protocol (Valkey, KeyDB, Dragonfly), as a place for entries.

Owns: the URL, the names of keys, and Redis's errors. Must not know: what values hold.

    redis://[user:password@]host[:port][/database][?prefix=NAME][&ttl=SECONDS]   rediss:// for TLS, unix:// for a socket

A key is ``prefix:kv:`` and the entry's digest. Servers of one prefix share what they store; who may use a Redis may
read and delete everything in it, so tenants that do not trust each other need users with rights of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from sixfold.cache.remote import SHORTEST_REST, Refused, RemoteCache, Unreachable
from sixfold.errors import ConfigError

TIMEOUT = 0.5  # seconds for a connection, and for each wait of an answer
BATCH = 4  # pages read in one round trip; more are no quicker on a machine and wait longer for their last
PREFIX = "sixfold"
_EXAMPLE = "Write redis://host:6379/0, rediss://... for TLS, or unix:///path/to/socket"


def open_redis(url: str, *, shortest_rest: float = SHORTEST_REST) -> RemoteCache:
    """Raises ConfigError for what will never work: a wrong URL, no library, no admittance."""
    plain, prefix, ttl = _parsed(url)
    where = place(url)
    store = RedisStore(_client(plain, where), prefix, ttl, where)
    cache = RemoteCache("redis", where, store, batch=BATCH, shortest_rest=shortest_rest)
    cache.greet()
    return cache


def place(url: str) -> str:
    """The URL without what is secret or may be: for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def with_prefix(url: str, prefix: str) -> str:
    """The URL with another prefix: a part of the same Redis for a use of its own."""
    query = dict(parse_qsl(urlsplit(url).query)) | {"prefix": prefix}
    return f"{url.partition('?')[0]}?{urlencode(query)}"


def has_password(url: str) -> bool:
    parts = urlsplit(url)
    return "@" in parts.netloc or any(name in ("password", "username") for name, _ in parse_qsl(parts.query))


class RedisStore:
    def __init__(self, client: Any, prefix: str, ttl: int | None, where: str) -> None:
        self._client = client
        self._where = where
        self._prefix = f"{prefix}:kv:".encode()
        self._ttl = ttl

    def check(self) -> None:
        from redis import exceptions

        with _failures():
            try:
                self._client.exists(self._prefix)
                self._client.touch(self._prefix)
            except (exceptions.AuthenticationError, exceptions.ResponseError) as error:
                raise ConfigError(
                    f"{self._where} does not let us in", cause=_said(error),
                    remedy="Set SIXFOLD_KV_REDIS=redis://user:password@host, or correct what the user may do there",
                    param="kv_redis",
                ) from None  # fmt: skip

    def get(self, names: Sequence[bytes]) -> list[bytes | None]:
        with _failures():
            found: list[bytes | None] = self._client.mget([self._prefix + name for name in names])
            return found

    def put(self, name: bytes, value: bytes) -> None:
        from redis import exceptions

        with _failures():
            try:
                self._client.set(self._prefix + name, value, ex=self._ttl)
            except exceptions.ResponseError as error:  # OOM, READONLY, NOPERM
                raise Refused(_said(error)) from None

    def has(self, name: bytes) -> bool:
        """It counts as used by that. Asked before a put, so a refusal is one of the put."""
        from redis import exceptions

        with _failures():
            try:
                return bool(self._client.touch(self._prefix + name))
            except exceptions.ResponseError as error:  # NOPERM
                raise Refused(_said(error)) from None

    def delete(self, name: bytes) -> None:
        with _failures():
            self._client.unlink(self._prefix + name)

    def clear(self) -> None:
        with _failures():
            names: list[bytes] = []
            for name in self._client.scan_iter(match=_literally(self._prefix) + b"*", count=1000):
                names.append(name)
                if len(names) >= 1000:
                    self._client.unlink(*names)
                    names.clear()
            if names:
                self._client.unlink(*names)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._client.close()


def _client(url: str, where: str) -> Any:
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise ConfigError(
            "kv_redis needs the package redis", remedy="Install it: pip install 'sixfold[redis]'", param="kv_redis"
        ) from None
    try:
        return redis.Redis.from_url(
            url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, retry=Retry(NoBackoff(), 0),
            decode_responses=False, client_name="sixfold",
        )  # fmt: skip
    except ValueError:  # its words may hold parts of the URL
        raise _wrong(where) from None


def _parsed(url: str) -> tuple[str, str, int | None]:
    """(the URL for the library, prefix, seconds after which entries go)."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise _wrong("kv_redis") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise _wrong("kv_redis")
    query = dict(parse_qsl(parts.query))
    prefix, ttl = query.pop("prefix", PREFIX), query.pop("ttl", None)
    if ttl is not None and not (ttl.isdecimal() and int(ttl) > 0):
        raise ConfigError("kv_redis has a wrong ttl", remedy="Write whole seconds, ttl=86400", param="kv_redis")
    plain = url.partition("?")[0] + ("?" + urlencode(query) if query else "")
    return plain, prefix, None if ttl is None else int(ttl)


def _wrong(what: str) -> ConfigError:
    return ConfigError(f"{what} is no URL of a Redis", remedy=_EXAMPLE, param="kv_redis")


def _said(error: Exception) -> str:
    """The kind of an error and Redis's words; the library's words for these hold nothing of the URL."""
    return str(error) or type(error).__name__


def _literally(prefix: bytes) -> bytes:
    """For MATCH, where some characters are patterns."""
    return b"".join(b"\\" + bytes([byte]) if byte in b"*?[]\\^" else bytes([byte]) for byte in prefix)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    from redis import exceptions

    try:
        yield
    except (exceptions.RedisError, OSError) as error:
        raise Unreachable(type(error).__name__) from None
