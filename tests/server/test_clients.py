"""The openai package, unmodified, against the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.server.fake_engine import FakeEngine

HI: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
def url(serve: Callable[..., Any]) -> Iterator[str]:
    with serve(api_key="k") as live:
        yield f"{live.url}/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake-model", messages=HI, logprobs=True, top_logprobs=1)
    assert answer.choices[0].message.content == "Hello, wörld!" and answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert answer.usage and answer.usage.total_tokens == 36
    chunks = client.chat.completions.create(
        model="fake-model", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == "Hello, wörld!"


def test_the_stream_helper_accumulates(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="fake-model", messages=HI) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert (message.role, message.content, message.tool_calls) == ("assistant", "Hello, wörld!", None)


def test_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake-model", messages=HI)
    history = [*HI, answer.choices[0].message.model_dump(), *HI]
    assert client.chat.completions.create(model="fake-model", messages=history).choices
    history[1] = answer.choices[0].message
    assert client.chat.completions.create(model="fake-model", messages=history).choices


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake-model", prompt=["a", "b"], logprobs=1, max_tokens=2)
    assert [choice.text for choice in answer.choices] == ["He", "He"]
    stream = client.completions.create(model="fake-model", prompt=[1, 2], stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Hello, wörld!"


def test_errors_have_their_classes(client: openai.OpenAI, url: str, serve: Any, engine: FakeEngine) -> None:
    with pytest.raises(openai.BadRequestError, match="extra_thing"):
        client.chat.completions.create(model="fake-model", messages=HI, extra_body={"extra_thing": 1})
    with pytest.raises(openai.NotFoundError, match="fake-model"):
        client.chat.completions.create(model="gpt-4o", messages=HI)
    with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=url, api_key="x") as other:
        other.models.list()
    engine.failure = RuntimeError("secret")
    with pytest.raises(openai.APIError) as caught:
        list(client.chat.completions.create(model="fake-model", messages=HI, stream=True))
    assert "secret" not in str(caught.value)
    engine.failure, engine.max_queue = None, 0
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="fake-model", messages=HI)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake-model"]
    assert client.models.retrieve("fake-model").owned_by == "sixfold"


async def test_async(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="k") as client:
        stream = await client.chat.completions.create(model="fake-model", messages=HI, stream=True)
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(texts) == "Hello, wörld!"
        with_id = await client.chat.completions.with_raw_response.create(model="fake-model", messages=HI)
        assert with_id.headers["x-request-id"] and with_id.parse().choices[0].message.content == "Hello, wörld!"
