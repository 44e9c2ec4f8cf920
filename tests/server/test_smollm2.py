"""The whole path: a real socket, the unmodified ``openai`` client, the real engine and the real small model."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest

from sixfold.config import EngineConfig, ServerConfig
from sixfold.engine.async_engine import AsyncEngine
from tests.server.conftest import LiveServer

pytestmark = pytest.mark.model

CLIENTS = 32


@pytest.fixture(scope="module")
def live(smollm2_path: Path) -> Iterator[LiveServer]:
    # too little KV memory for all clients at once, so that some are preempted
    engine = AsyncEngine.from_config(EngineConfig(model=str(smollm2_path), kv_memory=24 << 20))
    with LiveServer(engine, ServerConfig(port=0, served_model_name="smollm2")) as server:  # type: ignore[arg-type]
        yield server


@pytest.fixture
async def client(live: LiveServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


async def test_a_chat_is_sensible(client: openai.AsyncOpenAI) -> None:
    ask = [{"role": "user", "content": "Explain in one sentence what a computer does."}]
    answer = await client.chat.completions.create(model="smollm2", messages=ask, temperature=0)  # type: ignore[arg-type]
    assert "device" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


async def stream(client: openai.AsyncOpenAI, ask: dict[str, Any]) -> tuple[str, list[float], str | None]:
    """Text, log-probabilities and finish reason of a streamed completion."""
    text, logprobs, reason = "", [], None
    async for chunk in await client.completions.create(model="smollm2", stream=True, **ask):
        for choice in chunk.choices:
            text += choice.text
            reason = choice.finish_reason or reason
            if choice.logprobs:
                logprobs += [value for value in choice.logprobs.token_logprobs or [] if value is not None]
    return text, logprobs, reason


async def test_32_streaming_clients_get_what_each_gets_alone(live: LiveServer, client: openai.AsyncOpenAI) -> None:
    rng = random.Random(4)
    asks = [
        {
            "prompt": [rng.randrange(3, 49000) for _ in range(rng.randrange(1, 100))],
            "max_tokens": rng.randrange(30, 70),
            "extra_body": {"ignore_eos": True},  # so that all grow, however late some arrive
            "temperature": rng.choice([0.0, 0.8]),
            "seed": index,
            "logprobs": 1,
        }
        for index in range(CLIENTS)
    ]
    together = await asyncio.gather(*(stream(client, ask) for ask in asks))
    stats = live.engine.stats()  # type: ignore[attr-defined]
    assert stats.preemptions > 0, "the memory was meant to be too small"
    for ask, crowded in zip(asks, together, strict=True):
        assert await stream(client, ask) == crowded


async def test_clients_that_leave_harm_nobody_and_leave_nothing(live: LiveServer, client: openai.AsyncOpenAI) -> None:
    ask = {"prompt": "The history of the sea is", "max_tokens": 60, "temperature": 0}
    wanted = await stream(client, ask)

    async def leave() -> None:
        events = await client.completions.create(model="smollm2", prompt="x y z", max_tokens=500, stream=True)
        await anext(aiter(events))
        await events.response.aclose()

    results = await asyncio.gather(stream(client, ask), *(leave() for _ in range(8)))
    assert results[0] == wanted
    async with httpx.AsyncClient() as plain:
        for _ in range(100):
            if (await plain.get(f"{live.url}/load")).json()["server_load"] == 0:
                break
            await asyncio.sleep(0.05)
    stats = live.engine.stats()  # type: ignore[attr-defined]
    assert (stats.requests, stats.kv_pages_used) == (0, 0)


class Animal(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    legs: int = pydantic.Field(ge=0, le=100)
    diet: Literal["plants", "animals", "both"]


class Zoo(pydantic.BaseModel):
    city: str = pydantic.Field(max_length=20)
    animals: list[Animal] = pydantic.Field(min_length=1, max_length=2)


async def test_a_pydantic_class_comes_back(client: openai.AsyncOpenAI) -> None:
    ask: Any = [{"role": "user", "content": "Name a zoo and its animals as JSON."}]
    answers = await asyncio.gather(
        *(
            client.chat.completions.parse(
                model="smollm2", messages=ask, response_format=Zoo, temperature=1.3, seed=seed, max_tokens=300
            )
            for seed in range(6)
        )
    )
    for answer in answers:
        assert isinstance(answer.choices[0].message.parsed, Zoo)
    async with client.chat.completions.stream(
        model="smollm2", messages=ask, response_format=Zoo, temperature=1.3, seed=0, max_tokens=300
    ) as events:
        async for _ in events:
            pass
        last = await events.get_final_completion()
    assert last.choices[0].message.parsed == answers[0].choices[0].message.parsed


def test_a_server_that_ends_lets_go_of_everything(smollm2_path: Path) -> None:
    command = [sys.executable, "-m", "sixfold", "serve", str(smollm2_path), "--port", "0", "--kv-memory", "48MiB"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("Sixfold serves")
            server.terminate()
            _, errors = server.communicate(timeout=30)
        finally:
            server.kill()
    assert server.returncode == 0
    assert "leak" not in errors, "nanobind reports what is still there at the very end"


async def test_documents_in_another_order_are_answered_from(client: openai.AsyncOpenAI) -> None:
    """The answer is in a document that has moved; some of it is computed, most is reused."""
    documents = [
        "The tower stands beside the river, and its roof was painted red. Every summer many visitors come to see it, "
        "and in winter the wind from the north covers it with snow. An old man has the key, and he opens the door for "
        "anybody who asks him. The password of the gate is 4821. In spring the garden is full of birds. ",
        "In the market people sell apples, bread and fish from early morning on. Children play between the stalls, and "
        "the baker's dog sleeps under the table until noon. On Sundays the square is empty, and only the pigeons walk "
        "around the fountain until the bells of the old church are heard. The name of the driver is Edgar. ",
    ]
    ask: dict[str, Any] = {"model": "smollm2", "temperature": 0, "max_tokens": 6}
    await client.completions.create(prompt="".join(documents), **ask)
    prompt = "".join(reversed(documents)) + "The password of the gate is"
    reused, computed = [
        await client.completions.create(prompt=prompt, extra_body={"reuse_context": reuse}, **ask)
        for reuse in (True, False)
    ]
    assert "4821" in reused.choices[0].text and "4821" in computed.choices[0].text
    details: Any = reused.usage and reused.usage.prompt_tokens_details
    assert details.reused_tokens > 80 and 30 < details.recomputed_tokens < 50
    assert reused.system_fingerprint == f"{computed.system_fingerprint}-reuse_0.15"
