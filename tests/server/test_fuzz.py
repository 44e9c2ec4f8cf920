"""Any body whatsoever gets an answer or a 4xx in the error shape, never a 5xx."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sixfold.config import ServerConfig
from sixfold.server.app import create_app
from sixfold.server.openai import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from tests.server.fake_engine import FakeEngine

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([-1, 0, 1, 2, 2**31, 2**63, -(2**64), 10**400]),
    st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8),
    st.sampled_from(["", "user", "none", "text"]),
)  # fmt: skip
KEYS = st.sampled_from(["role", "content", "type", "text", "name", "1"]) | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=8,
)  # fmt: skip
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1]},
}
MODELS = dict(zip(GOOD, (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest), strict=True))
MESSAGE_KEYS = st.sampled_from(["role", "content", "name", "tool_calls"])
APP = create_app(FakeEngine("ok"), ServerConfig(max_prompts=8))  # type: ignore[arg-type]
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def post(path: str, body: bytes) -> None:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://test") as client:
            return await client.post(path, content=body)

    response = asyncio.run(send())
    assert response.status_code == 200 or 400 <= response.status_code < 500, (body, response.text)
    if response.status_code != 200:
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"] and len(error["message"]) < 3000
    else:
        assert "server_error" not in response.text  # nor in a stream that began well


@pytest.mark.parametrize("path", GOOD)
@QUICK
@given(data=st.data())
def test_any_value_in_any_field(path: str, data: st.DataObject) -> None:
    names = st.sampled_from(sorted(MODELS[path].model_fields))
    changes = data.draw(st.dictionaries(names, values, min_size=1, max_size=3))
    post(path, json.dumps({**GOOD[path], **changes}).encode())


@pytest.mark.parametrize("path", GOOD)
@settings(QUICK, max_examples=30)
@given(name=st.text(max_size=20), value=values)
def test_any_unknown_field(path: str, name: str, value: Any) -> None:
    post(path, json.dumps({**GOOD[path], name: value}).encode())


@settings(QUICK, max_examples=80)
@given(path=st.sampled_from(sorted(GOOD)), body=st.binary(max_size=60) | values.map(lambda v: json.dumps(v).encode()))
def test_any_body(path: str, body: bytes) -> None:
    post(path, body)


@QUICK
@given(
    messages=st.lists(
        st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls"]), values, max_size=4), max_size=3
    )
)
def test_any_messages(messages: Any) -> None:
    post("/v1/chat/completions", json.dumps({"messages": messages}).encode())
