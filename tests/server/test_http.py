"""What only a real socket shows: limits while reading, keys, ids, disconnects, draining, first tokens at once."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.server.fake_engine import FakeEngine

HI = {"messages": [{"role": "user", "content": "hi"}]}
Serve = Callable[..., Any]


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def raw(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(data)
        return connection.recv(65536)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"{} {}", b"\xff\xfe", b'{"messages": "\xff"}', b'{"a": "\\ud800"}',
        b'{"temperature": NaN}', b'{"temperature": Infinity}', b'{"n": 1e999}', b"[" * 100_000, b'{"a":' * 100_000,
        b'{"seed": ' + b"9" * 100_000 + b"}", b'{"prompt": "x", "temperature": 1e999}', b"\x00", b"\xef\xbb\xbf{}",
    ],
    ids=range(18),
)  # fmt: skip
async def test_broken_json(client: httpx.AsyncClient, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        response = await client.post(path, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400, (path, response.text)
        assert response.json()["error"]["message"]


async def test_other_content_types(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/chat/completions", data={"a": "b"})
    assert response.status_code == 415 and "application/json" in response.json()["error"]["message"]
    bare = await client.post("/tokenize", content=b'{"prompt": "a"}')
    assert bare.status_code == 200


def test_a_declared_body_over_the_limit(serve: Serve) -> None:
    with serve(max_body_bytes=1000) as live:
        response = httpx.post(f"{live.url}/tokenize", json={"prompt": "x" * 2000})
        assert response.status_code == 413 and "max_body_bytes" in response.json()["error"]["message"]
        # Refused by the number alone: the body is never waited for.
        head = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n"
        assert raw(live.port, head).startswith(b"HTTP/1.1 413")


def test_a_chunked_body_over_the_limit(serve: Serve) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(50):
            yield b"x" * 100

    with serve(max_body_bytes=1000) as live, httpx.Client(base_url=live.url) as client:
        response = client.post("/tokenize", content=chunks())
        assert response.status_code == 413 and response.json()["error"]["code"] == "body_too_large"
        assert client.post("/tokenize", json={"prompt": "ab"}).json()["count"] == 3


def test_headers_over_the_limit(serve: Serve) -> None:
    with serve(max_header_bytes=2000) as live:
        response = httpx.get(f"{live.url}/health", headers={"x-long": "x" * 3000})
        assert response.status_code == 431 and "max_header_bytes" in response.json()["error"]["message"]
        endless = b"GET /health HTTP/1.1\r\nx: " + b"x" * 100_000
        assert raw(live.port, endless).startswith(b"HTTP/1.1 400")
        assert httpx.get(f"{live.url}/health").status_code == 200


def test_request_ids(serve: Serve) -> None:
    with serve() as live, httpx.Client(base_url=live.url) as client:
        assert client.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
        assert client.get("/nope", headers={"x-request-id": "abc-2"}).headers["x-request-id"] == "abc-2"
        assert len(client.get("/health").headers["x-request-id"]) == 32
        for bad in ("a" * 200, "a b"):
            assert client.get("/health", headers={"x-request-id": bad}).headers["x-request-id"] != bad


def test_api_key(serve: Serve) -> None:
    with serve(api_key="sécret") as live, httpx.Client(base_url=live.url) as client:
        for path in ("/health", "/ping", "/ready", "/version", "/metrics"):
            assert client.get(path).status_code == 200
        for given in (None, b"Bearer wrong", b"Bearer", b"Basic s\xc3\xa9cret", b"Bearer \xff"):
            response = client.get("/v1/models", headers={} if given is None else {"authorization": given})  # type: ignore[arg-type]
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["type"] == "authentication_error"
        right = {"authorization": b"bearer s\xc3\xa9cret"}
        assert client.get("/v1/models", headers=right).status_code == 200  # type: ignore[arg-type]
        assert client.post("/tokenize", json={"prompt": "a"}).status_code == 401
        assert client.get("/nope").status_code == 401  # what there is is nobody else's business


def test_the_first_token_leaves_at_once(serve: Serve, engine: FakeEngine) -> None:
    engine.delay = 0.05
    began = time.monotonic()
    with serve() as live, httpx.stream("POST", f"{live.url}/v1/chat/completions", json={**HI, "stream": True}) as got:
        times = [time.monotonic() - began for line in got.iter_lines() if line]
    # Were the answer collected before it is sent, the first event would come with the last.
    assert times[-1] - times[0] > 10 * engine.delay


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_client_that_leaves_stops_its_request(serve: Serve, engine: FakeEngine, path: str, stream: bool) -> None:
    engine.delay = 0.2
    fields = HI if "chat" in path else {"prompt": ["a", "b"]}
    with serve() as live:
        with httpx.Client(base_url=live.url, timeout=httpx.Timeout(5, read=0.3)) as client:
            if stream:
                with client.stream("POST", path, json={**fields, "stream": True}) as response:
                    lines = response.iter_lines()  # kept: dropping it would close the response
                    next(lines)
                    assert engine.running
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(path, json=fields)
        assert eventually(lambda: not engine.running, 1.0)
        assert len(engine.aborted) == len(engine.calls) > 0
        assert eventually(lambda: live.app.state.server.active == 0)


def test_a_hundred_clients_that_leave(serve: Serve, engine: FakeEngine) -> None:
    engine.delay, engine.max_queue = 0.5, 200

    def begin_and_leave(port: int) -> None:
        body = b'{"prompt": "a", "stream": true}'
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        raw(port, head + body)

    with serve() as live, ThreadPoolExecutor(20) as pool:
        list(pool.map(begin_and_leave, [live.port] * 100))
        assert len(engine.calls) == 100
        assert eventually(lambda: not engine.running, 1.0)


def test_draining_lets_requests_finish(serve: Serve, engine: FakeEngine) -> None:
    engine.delay = 0.03
    with serve(drain_seconds=10) as live, httpx.Client(base_url=live.url) as client:
        with client.stream("POST", "/v1/chat/completions", json={**HI, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            assert httpx.get(f"{live.url}/load").json() == {"server_load": 1}
            live.begin_drain()
            assert eventually(lambda: live.app.state.server.draining)
            assert httpx.get(f"{live.url}/ready").status_code == 503
            assert httpx.get(f"{live.url}/health").status_code == 200
            refused = httpx.post(f"{live.url}/v1/chat/completions", json=HI)
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) in range(1, 11)
            assert refused.json()["error"]["code"] == "draining"
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        live._thread.join(5)
        assert not live._thread.is_alive() and not engine.aborted


@pytest.mark.parametrize("stream", [True, False])
def test_draining_aborts_what_takes_too_long(serve: Serve, engine: FakeEngine, stream: bool) -> None:
    engine.delay = 0.3
    with serve(drain_seconds=0.2) as live, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{live.url}/v1/chat/completions", json={**HI, "stream": stream}, timeout=10)
        assert eventually(lambda: bool(engine.running))
        live.begin_drain()
        response = asked.result()
        assert "shut down before" in response.text
        assert response.status_code == (200 if stream else 503)
        if stream:
            assert response.text.endswith("data: [DONE]\n\n")


def test_pipelined_and_kept_alive(serve: Serve) -> None:
    with serve() as live, httpx.Client(base_url=live.url) as client:
        for _ in range(3):
            assert client.post("/v1/completions", json={"prompt": "a", "n": 99}).status_code == 400
            assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_requests_are_counted(serve: Serve) -> None:
    with serve() as live, httpx.Client(base_url=live.url) as client:
        client.post("/v1/completions", json={"prompt": "a"})
        client.get("/some/random/path")
        text = client.get("/metrics").text
    assert 'http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 1.0' in text
    assert 'http_requests_total{handler="unmatched",method="ANY",status="4xx"} 1.0' in text
    assert "random" not in text
