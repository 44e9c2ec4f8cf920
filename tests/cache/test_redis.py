from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from sixfold.cache.frame import encode
from sixfold.cache.redis import has_password, open_redis, place
from sixfold.errors import ConfigError
from tests.cache.faults import key_of, payload_of
from tests.cache.redis_server import RedisServer, needs_redis, redis_server

SECRET = "hunter2hunter2"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as running:
        yield running


@needs_redis
def test_what_one_puts_another_gets(server: RedisServer) -> None:
    one, other = open_redis(server.url), open_redis(server.url)
    keys = [key_of(number) for number in range(10)]
    for number in range(8):
        assert one.put(keys[number], payload_of(number)) and keys[number] in one
    assert other.known(keys) == 10 and keys[0] not in other  # only asking tells
    assert other.read(keys) == [payload_of(number) for number in range(8)]
    assert keys[0] in other and (other.counts.hits, other.counts.misses) == (8, 1)
    assert other.put(keys[0], payload_of(0)) and other.counts.stored == 0  # it was there
    one.delete(keys[0])
    assert other.get(keys[0]) is None and keys[0] not in other


@needs_redis
@pytest.mark.parametrize("value", [b"", b"SIXKV", "torn", "flipped", "foreign", "stale"])
def test_what_is_not_the_entry_is_a_miss_and_removed(server: RedisServer, value: bytes | str) -> None:
    cache = open_redis(server.url)
    key, good = key_of(0), encode(key_of(0), payload_of(0))
    damaged = {
        "torn": good[:-1],
        "flipped": good[:200] + bytes([good[200] ^ 4]) + good[201:],
        "foreign": encode(key_of(1), payload_of(1)),
        "stale": encode(type(key)(key.digest, key.content + b" yesterday"), payload_of(0)),
    }
    client = server.client()
    client.set(b"sixfold:kv:" + key.digest, damaged[value] if isinstance(value, str) else value)
    assert cache.get(key) is None and cache.counts.rejected == 1 and client.dbsize() == 0


@needs_redis
def test_a_value_of_another_type_is_a_miss(server: RedisServer) -> None:
    cache = open_redis(server.url)
    server.client().rpush(b"sixfold:kv:" + key_of(0).digest, "a list")
    assert cache.get(key_of(0)) is None


@needs_redis
def test_prefixes_do_not_meet_and_clearing_one_spares_the_others(server: RedisServer) -> None:
    one, other = open_redis(f"{server.url}?prefix=a*"), open_redis(f"{server.url}?prefix=ab")
    server.client().set("mine", "kept")
    for cache in (one, other):
        cache.put(key_of(0), payload_of(0))
    one.put(key_of(1), payload_of(1))
    assert other.get(key_of(1)) is None
    one.clear()
    assert one.get(key_of(0)) is None and other.get(key_of(0)) == payload_of(0)
    assert server.client().get("mine") == b"kept"


@needs_redis
def test_entries_go_after_their_time(server: RedisServer) -> None:
    cache = open_redis(f"{server.url}?ttl=100")
    cache.put(key_of(0), payload_of(0))
    assert 0 < server.client().ttl(b"sixfold:kv:" + key_of(0).digest) <= 100


@needs_redis
def test_a_dead_redis_is_left_alone_and_comes_back(server: RedisServer) -> None:
    cache = open_redis(server.url)
    now = [0.0]
    cache._asking._now = lambda: now[0]
    cache.put(key_of(0), payload_of(0))
    server.kill()
    assert cache.get(key_of(0)) is None and cache.counts.failed == 1
    for _ in range(100):
        assert cache.get(key_of(0)) is None and not cache.put(key_of(1), payload_of(1))
    assert cache.counts.failed == 1 and cache.known([key_of(0)]) == 0  # nobody has asked it
    now[0] += 0.6
    assert cache.get(key_of(0)) is None and cache.counts.failed == 2
    now[0] += 0.6
    cache.get(key_of(0))
    assert cache.counts.failed == 2, "it rests for twice as long"
    server.start()
    now[0] += 1.0
    assert cache.get(key_of(0)) is None and cache.put(key_of(0), payload_of(0))
    assert cache.get(key_of(0)) == payload_of(0) and cache.counts.failed == 2


@needs_redis
def test_what_could_not_be_cleared_is_not_found_later(server: RedisServer) -> None:
    cache = open_redis(server.url, shortest_rest=0.0)
    cache.put(key_of(0), payload_of(0))
    client = server.client()
    client.client_pause(700, all=True)
    cache.clear()  # times out
    assert cache.counts.failed == 1
    found = None
    while cache.counts.failed < 2:  # once more; then the pause is over
        found = cache.get(key_of(0))
        assert found is None
        if cache.counts.failed == 1:
            break
    assert cache.get(key_of(0)) is None and client.dbsize() == 0


@needs_redis
def test_a_full_redis_still_answers(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    cache = open_redis(server.url)
    cache.put(key_of(0), payload_of(0))
    server.client().config_set("maxmemory", 1)
    assert not cache.put(key_of(1), payload_of(1)) and cache.counts.failed == 1
    assert "does not take KV pages" in caplog.text
    assert key_of(1) in cache, "nothing is copied for it for a while"
    assert cache.get(key_of(0)) == payload_of(0)


@needs_redis
def test_one_that_may_not_be_asked_before_a_put_is_still_read(server: RedisServer) -> None:
    cache = open_redis(server.url)
    cache.put(key_of(0), payload_of(0))
    admin = server.client()
    admin.execute_command("ACL", "SETUSER", "default", "-touch")
    assert not cache.put(key_of(1), payload_of(1)) and cache.counts.failed == 1
    assert cache.get(key_of(0)) == payload_of(0), "refusing to store is no reason not to read"
    with pytest.raises(ConfigError, match="touch"):
        open_redis(server.url)


@needs_redis
def test_a_redis_that_lets_nobody_in_is_an_error_and_says_no_secrets(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    with redis_server(tmp_path, "--requirepass", "right") as server:
        url = server.url.replace("unix://", f"unix://user:{SECRET}@")
        for wrong in (server.url, url):
            with pytest.raises(ConfigError, match="does not let us in") as error:
                open_redis(wrong)
            assert SECRET not in str(error.value) + repr(error.value)
        open_redis(server.url.replace("unix://", "unix://:right@")).put(key_of(0), payload_of(0))
    assert SECRET not in caplog.text and "right@" not in caplog.text


def test_one_that_does_not_answer_is_a_warning_that_says_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    cache = open_redis(f"redis://me:{SECRET}@127.0.0.1:1/0?ttl=5&password={SECRET}")
    assert "redis://127.0.0.1:1/0 does not answer" in caplog.text and SECRET not in caplog.text
    assert cache.get(key_of(0)) is None and cache.known([key_of(0)]) == 0


@pytest.mark.parametrize(
    "url", ["http://host", "redis", f"redis://:{SECRET}@host:port/0", f"redis://:{SECRET}@host/0?ttl=soon", "redis://[x/0"]
)  # fmt: skip
def test_a_wrong_url_is_a_clear_error(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        open_redis(url)
    assert error.value.param == "kv_redis" and SECRET not in str(error.value)


def test_secrets_in_urls() -> None:
    assert place(f"redis://me:{SECRET}@host:6380/2?ttl=5") == "redis://host:6380/2"
    assert has_password("redis://me@host") and has_password("redis://host?password=x")
    assert not has_password("redis://host:6379/0?prefix=a")
