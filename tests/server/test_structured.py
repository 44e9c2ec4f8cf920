"""Structured output over HTTP: every client's way of asking for it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from sixfold.config import ServerConfig
from sixfold.server.app import create_app
from sixfold.server.structured_fields import structured_outputs
from sixfold.types import StructuredOutputsParams
from tests.fakes import make_async_engine
from tests.server.fake_engine import FakeTemplate

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
OPENAI = {"name": "x", "schema": SCHEMA, "strict": True}
HI = [{"role": "user", "content": "hi"}]
JSON = StructuredOutputsParams(json=SCHEMA)
DIGITS = StructuredOutputsParams(regex="[0-9]+")


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, StructuredOutputsParams(json_object=True)),
        ({"response_format": {"type": "json_schema", "json_schema": OPENAI}}, JSON),
        ({"response_format": {"type": "json_object", "value": SCHEMA}}, JSON),
        ({"response_format": {"type": "json", "value": SCHEMA}}, JSON),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, JSON),
        ({"response_format": {"type": "regex", "value": "[0-9]+"}}, DIGITS),
        ({"response_format": {"type": "json_schema", "value": {"name": "x", "schema": SCHEMA}}}, JSON),
        ({"grammar": {"type": "json", "value": SCHEMA}}, JSON),
        ({"grammar": {"type": "regex", "value": "[0-9]+"}}, DIGITS),
        ({"grammar": 'root ::= "a"'}, StructuredOutputsParams(grammar='root ::= "a"')),
        ({"structured_outputs": {"json": SCHEMA}}, JSON),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, JSON),
        ({"structured_outputs": {"choice": ["a", "b"]}}, StructuredOutputsParams(choice=("a", "b"))),
        ({"structured_outputs": {"json_object": True, "regex": None}}, StructuredOutputsParams(json_object=True)),
        ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
         StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True)),
        ({"structured_outputs": {}}, None),
        ({"guided_json": SCHEMA}, JSON),
        ({"guided_regex": "[0-9]+", "guided_decoding_backend": "auto"}, DIGITS),
        ({"guided_choice": ["a"], "guided_grammar": ""}, StructuredOutputsParams(choice=("a",))),
        ({"guided_json": SCHEMA, "guided_whitespace_pattern": " ?"},
         StructuredOutputsParams(json=SCHEMA, whitespace_pattern=" ?")),
        ({"response_format": {"type": "text"}, "guided_regex": "[0-9]+"}, DIGITS),
    ],
)  # fmt: skip
def test_every_way_of_asking(fields: dict[str, Any], meant: StructuredOutputsParams | None) -> None:
    assert structured_outputs(fields) == meant


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    engine = make_async_engine(num_pages=256, chat_template=FakeTemplate())
    app = create_app(engine, ServerConfig())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client
    engine.shutdown()


REFUSED = [
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "structural_tag", "structures": []}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "json_object", "strictness": 1}}, "response_format"),
    ({"grammar": {"type": "xml", "value": "a"}}, "grammar.type"),
    ({"grammar": {"type": "regex", "value": 5}}, "grammar"),
    ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"disable_any_whitespace": True}}, "structured_outputs"),
    ({"structured_outputs": {"choice": "a"}}, "structured_outputs"),
    ({"structured_outputs": [1]}, "structured_outputs"),
    ({"guided_decoding_backend": "outlines", "guided_regex": "a"}, "guided_decoding_backend"),
    ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
    ({"guided_json": SCHEMA, "response_format": {"type": "json_object"}}, "guided_json"),
    ({"structured_outputs": {"json": {"type": "array", "uniqueItems": True}}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
async def test_what_can_not_be_followed_is_a_400(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        response = await client.post("/v1/chat/completions", json={"messages": HI, "stream": stream, **fields})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == param
    if "uniqueItems" in str(fields):
        assert "uniqueItems at /uniqueItems" in response.json()["error"]["message"]


async def test_an_answer_whole_and_streamed(client: httpx.AsyncClient) -> None:
    body = {"messages": HI, "max_tokens": 300, "seed": 2, "n": 2,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}  # fmt: skip
    whole = (await client.post("/v1/chat/completions", json=body)).json()
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    for choice, text in zip(whole["choices"], texts, strict=True):
        assert choice["finish_reason"] == "stop" and json.loads(text).keys() == {"a"}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = await client.post("/v1/chat/completions", json={**body, **options})
    chunks = [json.loads(line[6:]) for line in streamed.text.split("\n\n")[:-2]]
    for index, text in enumerate(texts):
        choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        pieces = [choice["delta"].get("content") or "" for choice in choices]
        assert "".join(pieces) == text and len(pieces) < len(text)  # what is forced comes in one piece
    for used in (chunks[-1]["usage"], whole["usage"]):
        assert used["completion_tokens"] == sum(map(len, texts))


async def test_logprobs_of_a_whole_and_a_streamed_answer(client: httpx.AsyncClient) -> None:
    body = {"prompt": "x", "max_tokens": 40, "seed": 2, "logprobs": 2, "structured_outputs": {"regex": "abc[de]fgh"}}
    (choice,) = (await client.post("/v1/completions", json=body)).json()["choices"]
    assert choice["logprobs"]["tokens"] == list(choice["text"]) and len(choice["logprobs"]["text_offset"]) == 7
    assert [value == 0.0 for value in choice["logprobs"]["token_logprobs"]] == [True] * 3 + [False] + [True] * 3
