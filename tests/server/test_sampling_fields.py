"""Sampling fields beyond OpenAI's own, through the server and the real engine on a fake model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from sixfold.config import ServerConfig
from sixfold.server.app import create_app
from tests.fakes import make_async_engine


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    engine = make_async_engine(num_pages=256)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(engine, ServerConfig())), base_url="http://test"
    ) as client:
        yield client
    engine.shutdown()


async def complete(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {"prompt": "once", "max_tokens": 40, "seed": 1, "ignore_eos": True, **fields}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def text(client: httpx.AsyncClient, **fields: Any) -> str:
    return str((await complete(client, **fields))["choices"][0]["text"])


async def test_what_is_forbidden_does_not_come(client: httpx.AsyncClient) -> None:
    letters = {"allowed_token_ids": [*b"abcd"]}
    plain = await text(client, **letters)
    assert set(plain) == set("abcd")
    pair = plain[5:7]
    assert pair not in await text(client, **letters, bad_words=[pair])
    grams = await text(client, **letters, no_repeat_ngram_size=3, max_tokens=30)
    assert len({grams[i : i + 3] for i in range(28)}) == 28
    assert set(await text(client, **letters, logit_bias={"ab": -100, "99": 5})) <= set("cd")
    assert set(await text(client, **letters, logit_bias=[["ab", False], [100, -100]])) == {"c"}
    loop = await text(client, allowed_token_ids=[*b"ab"], temperature=0, max_tokens=60)
    dry = await text(client, allowed_token_ids=[*b"ab"], temperature=0, max_tokens=60, dry_multiplier=50.0)
    assert loop != dry


async def test_the_end_of_a_prompt(client: httpx.AsyncClient) -> None:
    for length, same in ((4, "long"), (-1, "so " * 600 + "long")):
        body = {"prompt": "so " * 600 + "long", "truncate_prompt_tokens": length, "max_tokens": 8, "seed": 1}
        answer = (await client.post("/v1/completions", json=body)).json()
        kept = min(len(same), 1024 - 8)
        assert answer["usage"]["prompt_tokens"] == kept
        wanted = await complete(client, prompt=same[-kept:], max_tokens=8, ignore_eos=False)
        assert answer["choices"] == wanted["choices"]


async def test_the_best_of_several(client: httpx.AsyncClient) -> None:
    answer = await complete(client, n=1, best_of=5, max_tokens=10)
    every = await complete(client, n=5, max_tokens=10, logprobs=0)
    best = max(every["choices"], key=lambda choice: sum(choice["logprobs"]["token_logprobs"]))
    assert answer["choices"][0]["text"] == best["text"] and answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 50


async def test_beams(client: httpx.AsyncClient) -> None:
    one = {"use_beam_search": True, "max_tokens": 6, "seed": None}
    greedy = await complete(client, max_tokens=6, temperature=0)
    assert (await complete(client, **one))["choices"][0]["text"] == greedy["choices"][0]["text"]
    wide = await complete(client, **one, n=3, logprobs=1, prompt=["once", "twice"])
    sums = [sum(choice["logprobs"]["token_logprobs"]) for choice in wide["choices"]]
    assert [choice["index"] for choice in wide["choices"]] == list(range(6))
    assert sums[:3] == sorted(sums[:3], reverse=True) and sums[3:] == sorted(sums[3:], reverse=True)
    assert wide["usage"]["completion_tokens"] == 36


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 1, "n": 2}, "best_of"), ({"best_of": 3, "stream": True}, "best_of"), ({"best_of": 99}, "best_of"),
        ({"use_beam_search": True, "stream": True}, "use_beam_search"), ({"length_penalty": 2.0}, "length_penalty"),
        ({"early_stopping": True}, "early_stopping"), ({"use_beam_search": True, "top_p": 0.5}, "top_p"),
        ({"use_beam_search": True, "temperature": 0.7}, "temperature"),
        ({"use_beam_search": True, "stop": "a"}, "stop"),
        ({"use_beam_search": True, "response_format": {"type": "json_object"}}, "response_format"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"allowed_token_ids": []}, "allowed_token_ids"), ({"allowed_token_ids": [260]}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words"),
        ({"bad_words": "a"}, "bad_words"), ({"bad_words": ["a"] * 129}, "bad_words"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"), ({"dry_multiplier": -1.0}, "dry_multiplier"),
        ({"dry_base": 0.5}, "dry_base"), ({"dry_allowed_length": 0}, "dry_allowed_length"),
        ({"dry_sequence_breakers": [5]}, "dry_sequence_breakers"), ({"logit_bias": [["a"]]}, "logit_bias"),
        ({"logit_bias": {"": 1}}, "logit_bias"), ({"logit_bias": [[True, 1]]}, "logit_bias"),
        ({"logit_bias": {"300": 1}}, "logit_bias"), ({"top_n_sigma": 1.0}, "top_n_sigma"),
        ({"repetition_detection": {}}, "repetition_detection"), ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"logprob_token_ids": [1]}, "logprob_token_ids"), ({"detokenize": False}, "detokenize"),
        ({"vllm_xargs": {"a": 1}}, "vllm_xargs"), ({"return_token_ids": True}, "return_token_ids"),
    ],
)  # fmt: skip
async def test_refused_by_name(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    response = await client.post("/v1/completions", json={"prompt": "x", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
