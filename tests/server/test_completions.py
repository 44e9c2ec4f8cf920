"""/v1/completions, /tokenize, /detokenize, and the small endpoints."""

from __future__ import annotations

from itertools import chain
from typing import Any

import httpx
import pytest

from tests.server.fake_engine import BOS, EOS, FakeEngine
from tests.server.test_chat import events


async def complete(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/completions", json={"prompt": "ab", **fields})


async def test_a_whole_completion(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = (await complete(client)).json()
    assert answer["object"] == "text_completion" and answer["system_fingerprint"]
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == ("Hello, wörld!", "stop", None)
    assert engine.calls[0][0] == [BOS, 97, 98] and engine.calls[0][1].max_tokens == 16


async def test_a_stream(client: httpx.AsyncClient) -> None:
    chunks = events(await complete(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c["choices"][0]["text"] for c in chunks[:-1]) == "Hello, wörld!"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop" and chunks[-1]["usage"]["total_tokens"] == 18


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [[BOS, 97, 98]]), (["a", "b"], [[BOS, 97], [BOS, 98]]), ([1, 2], [[1, 2]]), ("", [[BOS]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)  # fmt: skip
async def test_prompt_shapes(client: httpx.AsyncClient, engine: FakeEngine, prompt: Any, ids: Any) -> None:
    answer = (await complete(client, prompt=prompt, n=2, max_tokens=2)).json()
    assert [call[0] for call in engine.calls] == ids
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(ids)))
    assert answer["usage"]["completion_tokens"] == 4 * len(ids)
    engine.calls.clear()
    chunks = events(await complete(client, prompt=prompt, n=2, max_tokens=2, stream=True))
    texts: dict[int, str] = {}
    for choice in (chunk["choices"][0] for chunk in chunks):
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert texts == dict.fromkeys(range(2 * len(ids)), "He")


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        [[]],
        ["a", [1]],
        [1, "a"],
        [1.5],
        [True],
        [-1],
        [2**31],
        5,
        {},
        [[1], []],
        ["a"] * 6,
        [999],
        [[1], [999]],
        None,
    ],
)
async def test_bad_prompts(client: httpx.AsyncClient, engine: FakeEngine, prompt: Any) -> None:
    response = await complete(client, prompt=prompt)
    assert response.status_code == 400, response.text
    assert not engine.running and not engine.calls  # a list is refused as a whole, before any of it runs


async def test_too_long_a_prompt_is_refused_with_numbers(client: httpx.AsyncClient) -> None:
    for text, max_tokens in (("a" * 30_000, 1), ("a", 20_000)):
        error = (await complete(client, prompt=text, max_tokens=max_tokens)).json()["error"]
        assert error["code"] == "context_length_exceeded" and "20000" in error["message"]


async def test_a_queue_that_fills_midway_runs_none(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.max_queue = 1
    assert (await complete(client, prompt=["a", "b"])).status_code == 429
    assert not engine.running and len(engine.aborted) == 1


async def test_logprobs_with_echo(client: httpx.AsyncClient) -> None:
    fields = {"prompt": "hé", "max_tokens": 3, "logprobs": 2, "echo": True}
    choice = (await complete(client, **fields)).json()["choices"][0]
    assert choice["text"] == "héHel"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["<s>", "h", "bytes:\\xc3", "bytes:\\xa9", "H", "e", "l"]
    assert logprobs["token_logprobs"] == [None] + [-0.5] * 6
    assert logprobs["top_logprobs"][0] is None and logprobs["top_logprobs"][4] == {"H": -0.5, "A": -9999.0}
    assert logprobs["text_offset"] == [0, 0, 1, 1, 2, 3, 4]
    chunks = [c["choices"][0] for c in events(await complete(client, **fields, stream=True))]
    assert "".join(c["text"] for c in chunks) == "héHel"
    for name, whole in logprobs.items():
        assert list(chain(*(c["logprobs"][name] for c in chunks if c["logprobs"]))) == whole


async def test_only_the_prompt(client: httpx.AsyncClient) -> None:
    answer = (await complete(client, max_tokens=0, echo=True, logprobs=0)).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"], answer["usage"]["completion_tokens"]) == ("ab", "length", 0)
    assert choice["logprobs"]["tokens"] == ["<s>", "a", "b"]
    assert (await complete(client, max_tokens=0)).status_code == 400
    chunks = events(await complete(client, max_tokens=0, echo=True, stream=True))
    assert [c["choices"][0]["text"] for c in chunks] == ["ab"]
    ids = (await complete(client, prompt=[97, 98], max_tokens=1, echo=True)).json()
    assert ids["choices"][0]["text"] == "abH"


async def test_prompt_logprobs(client: httpx.AsyncClient) -> None:
    choice = (await complete(client, prompt_logprobs=0)).json()["choices"][0]
    assert choice["prompt_logprobs"][0] is None and set(choice["prompt_logprobs"][1]) == {"97"}


@pytest.mark.parametrize(
    ("name", "value"), [("suffix", "x"), ("best_of", 0), ("logprobs", 21), ("logprobs", True), ("messages", [])]
)
async def test_refused(client: httpx.AsyncClient, name: str, value: Any) -> None:
    error = (await complete(client, **{name: value})).json()["error"]
    assert error["param"] == name


async def test_tokenize(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/tokenize", json={"prompt": "ab", "return_token_strs": True})).json()
    assert answer == {"count": 3, "max_model_len": 20_000, "tokens": [BOS, 97, 98], "token_strs": ["<s>", "a", "b"]}
    bare = (await client.post("/tokenize", json={"prompt": "ab", "add_special_tokens": False})).json()
    assert bare["tokens"] == [97, 98] and bare["token_strs"] is None
    chat = (await client.post("/tokenize", json={"messages": [{"role": "user", "content": "a"}]})).json()
    text = (await client.post("/detokenize", json={"tokens": chat["tokens"][1:]})).json()
    assert text == {"prompt": "user: a\nassistant: "}
    long = (await client.post("/tokenize", json={"prompt": "x" * 10_000})).json()
    assert long["count"] == 10_001  # in a thread


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}), ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
        ("/tokenize", {"prompt": ["a"]}), ("/tokenize", {"messages": []}), ("/detokenize", {}),
        ("/detokenize", {"tokens": "a"}), ("/detokenize", {"tokens": [EOS + 1]}), ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [1], "x": 1}),
    ],
)  # fmt: skip
async def test_bad_tokenizing(client: httpx.AsyncClient, path: str, body: Any) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 400 and response.json()["error"]["message"]


async def test_small_endpoints(client: httpx.AsyncClient) -> None:
    models = (await client.get("/v1/models")).json()
    assert [m["id"] for m in models["data"]] == ["fake-model", "fake-alias"]
    assert models["data"][0]["max_model_len"] == 20_000 and models["data"][0]["object"] == "model"
    assert (await client.get("/v1/models/fake-alias")).json()["id"] == "fake-alias"
    assert (await client.get("/v1/models/a/b")).json()["error"]["code"] == "model_not_found"
    for path in ("/health", "/ping", "/ready"):
        assert (await client.get(path)).status_code == 200
    assert (await client.get("/version")).json()["version"]
    assert (await client.get("/load")).json() == {"server_load": 0}
    described = (await client.get("/openapi.json")).json()
    assert "temperature" in described["components"]["schemas"]["ChatRequest"]["properties"]


async def test_wrong_paths_and_methods(client: httpx.AsyncClient) -> None:
    missing = await client.post("/chat/completions", json={})
    assert missing.status_code == 404 and "Did you mean /v1/chat/completions?" in missing.json()["error"]["message"]
    wrong = await client.get("/v1/chat/completions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["code"] == "method_not_allowed"
