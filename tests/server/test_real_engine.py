"""The server on the real engine (with a fake model): what the fake engine cannot show."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from sixfold.config import ServerConfig
from sixfold.engine.async_engine import AsyncEngine
from sixfold.metrics import Metrics
from sixfold.server.app import create_app
from tests.fakes import FakeExecutor, make_async_engine
from tests.server.fake_engine import FakeTemplate


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("fake")


@pytest.fixture
async def engine(metrics: Metrics) -> AsyncIterator[AsyncEngine]:
    made = make_async_engine(num_pages=256, listener=metrics, chat_template=FakeTemplate(), max_num_seqs=40)
    yield made
    made.shutdown()


@pytest.fixture
async def client(engine: AsyncEngine, metrics: Metrics) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(engine, ServerConfig(), metrics=metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


async def streamed(client: httpx.AsyncClient, **fields: Any) -> tuple[str, str]:
    response = await client.post("/v1/completions", json={"stream": True, **fields})
    chunks = [json.loads(line[6:])["choices"][0] for line in response.text.split("\n\n")[:-2]]
    return "".join(chunk["text"] for chunk in chunks), chunks[-1]["finish_reason"]


async def test_a_stream_says_what_a_whole_answer_says(client: httpx.AsyncClient) -> None:
    for fields in (
        {"seed": 1, "max_tokens": 50},
        {"seed": -7, "stop": ["e", "a"], "n": 1},
        {"temperature": 0, "seed": 0},
    ):
        whole = (await client.post("/v1/completions", json={"prompt": "once", **fields})).json()["choices"][0]
        assert await streamed(client, prompt="once", **fields) == (whole["text"], whole["finish_reason"])


async def test_32_streams_at_once_are_what_each_is_alone(client: httpx.AsyncClient) -> None:
    asks = [{"prompt": "p" * (i + 1), "seed": i, "max_tokens": 20 + i, "ignore_eos": True} for i in range(32)]
    alone = [await streamed(client, **ask) for ask in asks]
    assert await asyncio.gather(*(streamed(client, **ask) for ask in asks)) == alone


async def test_logprobs_of_several_prompts_and_choices(client: httpx.AsyncClient) -> None:
    ask = {"prompt": ["one", "two two"], "n": 2, "max_tokens": 4, "logprobs": 3, "echo": True, "ignore_eos": True}
    answer = (await client.post("/v1/completions", json={**ask, "seed": 3})).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for choice, prompt in zip(answer["choices"], ["one", "one", "two two", "two two"], strict=True):
        logprobs = choice["logprobs"]
        assert choice["text"].startswith(prompt) and len(logprobs["tokens"]) == len(prompt) + 4
        assert logprobs["token_logprobs"][0] is None and all(value <= 0 for value in logprobs["token_logprobs"][1:])
        assert all(len(top) in (3, 4) for top in logprobs["top_logprobs"][1:])


async def test_refusals_of_the_engine(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    for fields, code in (
        ({"prompt": "x" * 2000}, "context_length_exceeded"),
        ({"prompt": "x", "max_tokens": 5000}, "context_length_exceeded"),
        ({"prompt": ""}, "invalid_request"), ({"prompt": [300]}, "invalid_request"),
        ({"prompt": "x", "logit_bias": {"300": 1}}, "invalid_request"),
        ({"prompt": "x", "stop_token_ids": [300]}, "invalid_request"),
        ({"prompt": ["fine", "x" * 2000]}, "context_length_exceeded"),
    ):  # fmt: skip
        response = await client.post("/v1/completions", json=fields)
        assert (response.status_code, response.json()["error"]["code"]) == (400, code), response.text
    assert engine.stats().requests == 0


async def test_metrics_come_from_the_engine(client: httpx.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "ignore_eos": True}
    usage = (await client.post("/v1/chat/completions", json=body)).json()["usage"]
    text = (await client.get("/metrics")).text
    labels = '{engine="0",model_name="fake"}'
    assert f"vllm:prompt_tokens_total{labels} {usage['prompt_tokens']}.0" in text
    assert f"vllm:generation_tokens_total{labels} 8.0" in text
    assert f"vllm:time_to_first_token_seconds_count{labels} 1.0" in text
    assert f"vllm:inter_token_latency_seconds_count{labels} 7.0" in text
    assert f"vllm:num_requests_running{labels} 0.0" in text
    assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name="fake"} 1.0' in text


async def cached(client: httpx.AsyncClient, **fields: Any) -> int:
    response = await client.post("/v1/chat/completions", json={"max_tokens": 8, "seed": 1, **fields})
    assert response.status_code == 200, response.text
    return int(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def asks(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


async def test_a_second_turn_and_other_tenants(client: httpx.AsyncClient) -> None:
    first = asks("tell me about " + "the sea " * 20)
    assert await cached(client, messages=first) == 0
    prompt = len(b"user:  assistant: ") + len(first[0]["content"])
    assert await cached(client, messages=first) == prompt - 1  # the last one is run for its logits
    longer = [*first, *asks("x", "answer", "and then?")[1:]]
    assert await cached(client, messages=longer) == prompt
    assert await cached(client, messages=longer, cache_salt="a") == 0
    assert await cached(client, messages=longer, cache_salt="b") == 0
    assert await cached(client, messages=longer, cache_salt="b") > prompt
    text = (await client.get("/metrics")).text
    hits = next(line for line in text.splitlines() if line.startswith("vllm:prefix_cache_hits_total{"))
    assert float(hits.split()[-1]) > 3 * prompt
    assert 'sixfold:kv_cache_waste_ratio{engine="0",model_name="fake"} 0.' in text


async def test_reused_context_is_counted_and_named(client: httpx.AsyncClient) -> None:
    draw = random.Random(0)
    one, two = ("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=150)) for _ in range(2))
    await client.post("/v1/completions", json={"prompt": one + two, "max_tokens": 1})
    ask = {"prompt": two + one + "!", "max_tokens": 1}
    plain = (await client.post("/v1/completions", json={**ask, "reuse_context": False, "cache_salt": "x"})).json()
    assert plain["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    for reuse, name, reused in ((True, "reuse_0.15", 256), ({"recompute": 0.5}, "reuse_0.5", 150)):
        body = {**ask, "reuse_context": reuse}
        answer = (await client.post("/v1/completions", json=body)).json()
        details = answer["usage"]["prompt_tokens_details"]
        assert details == {"cached_tokens": 0, "reused_tokens": reused, "recomputed_tokens": 300 - reused}
        assert answer["system_fingerprint"] == f"{plain['system_fingerprint']}-{name}"
        options = {"stream": True, "stream_options": {"include_usage": True}}
        lines = (await client.post("/v1/completions", json={**body, **options})).text.split("\n\n")
        last = json.loads(lines[-3][6:])
        assert last["usage"]["prompt_tokens_details"] == details
        assert last["system_fingerprint"] == answer["system_fingerprint"]
    text = (await client.get("/metrics")).text
    assert 'sixfold:kv_reused_tokens_total{engine="0",model_name="fake"} 812.0' in text
    assert 'sixfold:kv_recomputed_tokens_total{engine="0",model_name="fake"} 388.0' in text


@pytest.mark.parametrize("value", ["yes", 1, {"recompute": 2}, {"recompute": "0.1"}, {"share": 0.1}, [], {}])
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
async def test_a_wrong_reuse_context_is_refused(client: httpx.AsyncClient, path: str, value: Any) -> None:
    body = {"prompt": "a"} if path == "completions" else {"messages": asks("a")}
    response = await client.post(f"/v1/{path}", json={**body, "reuse_context": value})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "reuse_context")


async def test_a_reset_forgets_all(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    ask = asks("hello " * 30)
    for _ in range(2):
        assert await cached(client, messages=ask) == 0
        assert engine.stats().kv_pages_cached > 0
        response = await client.post("/reset_prefix_cache")
        assert (response.status_code, response.content) == (200, b"")
    assert (await client.get("/reset_prefix_cache")).status_code == 405


async def test_without_a_cache_the_usage_has_no_details_and_a_reset_is_fine() -> None:
    engine = make_async_engine(prefix_cache=False)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(engine, ServerConfig())), base_url="http://test"
    ) as client:
        for _ in range(2):
            answer = (await client.post("/v1/completions", json={"prompt": "x" * 50, "cache_salt": "a"})).json()
            assert answer["usage"]["prompt_tokens_details"] is None
        assert (await client.post("/reset_prefix_cache")).status_code == 200
    engine.shutdown()


async def test_a_dropped_stream_frees_its_pages(engine: AsyncEngine, metrics: Metrics) -> None:
    app = create_app(engine, ServerConfig(), metrics=metrics)
    body = json.dumps({"prompt": "x", "max_tokens": 1000, "ignore_eos": True, "stream": True}).encode()
    began, left = asyncio.Event(), asyncio.Event()
    sent = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        for message in sent:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            began.set()
            await asyncio.sleep(0.01)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "headers": [],
        "scheme": "http", "path": "/v1/completions", "raw_path": b"/v1/completions", "query_string": b"",
        "server": ("test", 80), "client": ("test", 1), "root_path": "",
    }  # fmt: skip
    task = asyncio.create_task(app(scope, receive, send))
    await began.wait()
    assert engine.stats().kv_pages_used > 0
    left.set()
    await asyncio.wait_for(task, 1)
    for _ in range(100):
        if engine.stats().requests == 0:
            break
        await asyncio.sleep(0.01)
    assert engine.stats().kv_pages_used == 0 or engine.stats().running == 0
    assert engine.stats().requests == 0


async def test_an_engine_that_fails_and_dies() -> None:
    engine = make_async_engine(executor=FakeExecutor(64, fail_when=lambda batch: True))
    app = create_app(engine, ServerConfig())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.post("/v1/completions", json={"prompt": "x"})
        assert response.status_code == 500 and "Traceback" not in response.text
        assert (await client.get("/health")).status_code == 200  # one step failed, others may not
        engine.shutdown()
        assert (await client.get("/health")).status_code == 503
        assert (await client.get("/ready")).status_code == 503


async def test_responses_say_what_is_approximated() -> None:
    executor = FakeExecutor(64)
    executor.approximations = ("kv_int8",)
    engine = make_async_engine(executor=executor)
    app = create_app(engine, ServerConfig(), metrics=Metrics("fake"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = (await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})).json()
    engine.shutdown()
    assert answer["system_fingerprint"].endswith("-kv_int8")
