"""/v1/chat/completions: shapes, streaming order, prompts, and what is refused by name."""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import Any

import httpx
import pytest

from tests.server.fake_engine import FakeEngine

HI = [{"role": "user", "content": "hi"}]


async def chat(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={"messages": HI, **fields})


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_a_whole_answer(client: httpx.AsyncClient) -> None:
    response = await chat(client)
    answer = response.json()
    assert response.status_code == 200
    assert answer["object"] == "chat.completion" and answer["model"] == "fake-model" and answer["system_fingerprint"]
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello, wörld!", "refusal": None, "tool_calls": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (21, 15, 36)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}


async def test_the_order_of_a_stream(client: httpx.AsyncClient) -> None:
    response = await chat(client, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "tool_calls": None}
    assert all("role" not in delta and "tool_calls" in delta for delta in deltas[1:])
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello, wörld!"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" and chunk["system_fingerprint"] for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)


async def test_usage_in_a_stream(client: httpx.AsyncClient) -> None:
    chunks = events(await chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 15
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    chunks = events(await chat(client, stream=True, stream_options={"continuous_usage_stats": True}))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 15


async def test_several_choices(client: httpx.AsyncClient) -> None:
    answer = (await chat(client, n=3)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 45
    texts = ["", "", ""]
    for chunk in events(await chat(client, n=3, stream=True)):
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    assert texts == ["Hello, wörld!"] * 3


async def test_logprobs(client: httpx.AsyncClient) -> None:
    whole = (await chat(client, logprobs=True, top_logprobs=2, max_tokens=2)).json()["choices"][0]["logprobs"]
    first = whole["content"][0]
    assert (first["token"], first["logprob"], first["bytes"]) == ("H", -0.5, [72])
    assert [t["token"] for t in first["top_logprobs"]] == ["H", "A"]
    assert first["top_logprobs"][1]["logprob"] == -9999.0  # -inf is not JSON
    streamed = events(await chat(client, logprobs=True, top_logprobs=2, max_tokens=2, stream=True))
    pieces = [c["choices"][0]["logprobs"]["content"] for c in streamed if c["choices"][0]["logprobs"]]
    assert list(chain(*pieces)) == whole["content"]
    ids = (await chat(client, logprobs=True, max_tokens=1, return_tokens_as_token_ids=True)).json()
    assert ids["choices"][0]["logprobs"]["content"][0]["token"] == "token_id:72"


async def test_a_held_back_character_loses_no_logprobs(client: httpx.AsyncClient) -> None:
    chunks = events(await chat(client, logprobs=True, stream=True))
    count = sum(len(c["choices"][0]["logprobs"]["content"]) for c in chunks if c["choices"][0]["logprobs"])
    assert count == len("Hello, wörld!".encode()) + 1


async def test_prompt_logprobs(client: httpx.AsyncClient) -> None:
    positions = (await chat(client, prompt_logprobs=1)).json()["prompt_logprobs"]
    assert positions[0] is None and len(positions) == 21
    assert positions[1] == {str(ord("u")): {"logprob": -0.5, "rank": 1, "decoded_token": "u"}}
    assert (await chat(client, prompt_logprobs=1, stream=True)).status_code == 400


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "user: hi\nassistant: "),
        ({"add_generation_prompt": False}, "user: hi\n"),
        ({"messages": [{"role": "developer", "content": "be brief"}]}, "system: be brief\nassistant: "),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            "user: a\nb\nassistant: ",
        ),
        (
            {"messages": [*HI, {"role": "assistant", "content": "Sure, "}], "continue_final_message": True},
            "user: hi\nassistant: Sure, ",
        ),
        ({"messages": [*HI, {"role": "assistant", "content": None, "tool_calls": None}]}, None),
    ],
)
async def test_messages_become_the_prompt(
    client: httpx.AsyncClient, engine: FakeEngine, fields: Any, text: str | None
) -> None:
    assert (await chat(client, **fields)).status_code == 200
    if text is not None:
        assert engine.tokenizer.decode(engine.calls[0][0]) == text


async def test_sampling_fields_reach_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    sent = {
        "temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.1,
        "presence_penalty": 0.2, "frequency_penalty": -0.2, "seed": -5, "stop_token_ids": [3], "ignore_eos": True,
        "include_stop_str_in_output": True, "min_tokens": 2, "skip_special_tokens": False, "n": 2,
    }  # fmt: skip
    response = await chat(client, **sent, stop="x", logit_bias={"5": -100}, priority=-3, max_completion_tokens=9)
    assert response.status_code == 200, response.text
    _, params, priority = engine.calls[0]
    assert {name: getattr(params, name) for name in sent} == {**sent, "stop_token_ids": (3,)}
    assert (params.stop, params.logit_bias, params.max_tokens, priority) == (("x",), {5: -100.0}, 9, -3)


async def test_max_tokens_defaults_to_the_context(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await chat(client)
    assert engine.calls[0][1].max_tokens is None


async def test_explicit_nulls_and_labels_are_welcome(client: httpx.AsyncClient) -> None:
    nulls = dict.fromkeys(
        ("model", "stream", "temperature", "stop", "tools", "response_format", "logit_bias", "n", "functions", "store")
    )
    labels = {"user": "me", "metadata": {"run": "1"}, "store": False, "tool_choice": "none", "tools": []}
    assert (await chat(client, **nulls)).status_code == 200
    assert (await chat(client, **labels, response_format={"type": "text"}, service_tier="auto")).status_code == 200
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert (await chat(client, tools=tools, tool_choice="none")).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]), ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("best_of", 0), ("modalities", ["text", "audio"]), ("store", True),
        ("use_beam_search", 1), ("truncate_prompt_tokens", 0), ("chat_template", "{{ 1 }}"), ("echo", True),
        ("reasoning_effort", "high"), ("length_penalty", 2.0), ("allowed_token_ids", []), ("best_of", True),
        ("n", 0), ("n", 5), ("n", "1"), ("n", True), ("n", 1.0), ("temperature", -1), ("temperature", "hot"),
        ("top_p", 0), ("top_k", -2), ("top_k", 2**40), ("min_p", 2), ("typical_p", 0), ("seed", 2**63),
        ("stop", ["a"] * 5), ("stop", ""), ("stop", [1]), ("stop", 3), ("stop_token_ids", [-1]),
        ("logit_bias", {"": 1}), ("logit_bias", {"1": 101}), ("logit_bias", [1]), ("max_tokens", 0),
        ("max_tokens", -1), ("top_logprobs", 3), ("stream_options", {"include_usage": True}), ("stream", "yes"),
        ("messages", []), ("messages", "hi"), ("messages", [1]), ("presence_penalty", 3), ("metadata", "x"),
        ("chat_template_kwargs", {"messages": []}), ("priority", 1.5), ("min_tokens", -1),
    ],
)  # fmt: skip
async def test_what_is_refused_is_refused_by_name(client: httpx.AsyncClient, name: str, value: Any) -> None:
    response = await chat(client, **{name: value})
    error = response.json()["error"]
    assert response.status_code == 400
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert re.split(r"[.\[]", error["param"])[0] == name and name in error["message"]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user"}, "messages[0].content is missing"),
        ({"content": "x"}, "messages[0].role is missing"),
        ({"role": "wizard", "content": "x"}, "wizard"),
        ({"role": "tool", "content": "x"}, "tool calls"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "image_url"),
        ({"role": "user", "content": [{"type": "text"}]}, "text"),
        ({"role": "user", "content": 5}, "integer"),
        ({"role": "user", "content": "x", "contnet": "y"}, "Did you mean messages[0].content?"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "tool_calls"),
    ],
)
async def test_bad_messages(client: httpx.AsyncClient, message: Any, says: str) -> None:
    response = await chat(client, messages=[message])
    assert response.status_code == 400 and says in response.json()["error"]["message"]


async def test_an_unknown_field_names_the_nearest(client: httpx.AsyncClient) -> None:
    error = (await chat(client, temprature=1)).json()["error"]
    assert error["param"] == "temprature" and "Did you mean temperature?" in error["message"]
    error = (await chat(client, stream=True, stream_options={"include_usge": True})).json()["error"]
    assert "stream_options.include_usage" in error["message"]


async def test_conflicting_fields(client: httpx.AsyncClient) -> None:
    assert (await chat(client, max_tokens=3, max_completion_tokens=4)).status_code == 400
    assert (await chat(client, max_tokens=4, max_completion_tokens=4)).status_code == 200
    both = await chat(client, continue_final_message=True, add_generation_prompt=True)
    assert both.json()["error"]["param"] == "continue_final_message"


async def test_model_names(client: httpx.AsyncClient) -> None:
    for name in ("fake-model", "fake-alias"):
        assert (await chat(client, model=name)).json()["model"] == name
    assert (await chat(client, model="dummy")).json()["model"] == "fake-model"
    response = await chat(client, model="gpt-4")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "fake-model or fake-alias" in error["message"]


async def test_a_model_without_template(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.chat_template = None
    response = await chat(client)
    assert response.status_code == 400 and "/v1/completions" in response.json()["error"]["message"]


async def test_a_failing_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.fail_with = "the page table burnt down"
    response = await chat(client)
    assert response.status_code == 500 and "burnt down" in response.json()["error"]["message"]
    engine.fail_with = None
    engine.failure = RuntimeError("secret")
    response = await chat(client)
    assert response.status_code == 500 and "secret" not in response.text
    streamed = await chat(client, stream=True)
    assert streamed.status_code == 200 and "secret" not in streamed.text
    assert events(streamed)[-1]["error"]["type"] == "server_error"
    engine.failure, engine.dead = None, True
    assert (await chat(client)).status_code == 503
    assert (await client.get("/health")).status_code == 503


async def test_a_full_queue(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.max_queue = 0
    response = await chat(client)
    assert response.status_code == 429 and response.headers["retry-after"] == "1"


async def test_a_salt_goes_to_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    for salt in ("tenant-1", "x" * 256, "ä", None):
        assert (await chat(client, cache_salt=salt)).status_code == 200
        assert engine.salts[-1] == salt
    ask = {"prompt": ["a", "b"], "cache_salt": "tenant-1"}
    assert (await client.post("/v1/completions", json=ask)).status_code == 200
    assert engine.salts[-2:] == ["tenant-1"] * 2


@pytest.mark.parametrize("salt", ["", "x" * 257, 7, True, ["a"], {"a": 1}])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_salt_is_refused(client: httpx.AsyncClient, engine: FakeEngine, salt: Any, stream: bool) -> None:
    response = await chat(client, cache_salt=salt, stream=stream)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "cache_salt") and not engine.calls


async def test_cached_tokens_are_part_of_the_usage_only_where_there_is_a_cache(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for cached, details in ((0, {"cached_tokens": 0}), (7, {"cached_tokens": 7}), (None, None)):
        engine.cached_tokens = cached
        assert (await chat(client)).json()["usage"]["prompt_tokens_details"] == details
        streamed = events(await chat(client, stream=True, stream_options={"include_usage": True}))
        assert streamed[-1]["usage"]["prompt_tokens_details"] == details
        ask = {"prompt": ["a", "b"], "max_tokens": 1}
        twice = None if cached is None else {"cached_tokens": 2 * cached}
        answer = (await client.post("/v1/completions", json=ask)).json()
        assert answer["usage"]["prompt_tokens_details"] == twice
        options = {"stream": True, "stream_options": {"include_usage": True}}
        streamed = events(await client.post("/v1/completions", json={**ask, **options}))
        assert streamed[-1]["usage"]["prompt_tokens_details"] == twice
