"""LoRA adapters over HTTP: models of their own names, loaded and unloaded below one directory only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sixfold.config import ServerConfig
from sixfold.engine.async_engine import AsyncEngine
from sixfold.engine.lora import Adapters, Content
from sixfold.errors import ConfigError
from sixfold.metrics import Metrics
from sixfold.server.app import create_app
from sixfold.weights.peft import read_adapter
from tests.adapters import tiny_adapter
from tests.fakes import FakeExecutor, make_async_engine
from tests.server.fake_engine import FakeEngine

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


def client_of(engine: Any, config: ServerConfig, metrics: Metrics | None = None) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(engine, config, metrics=metrics))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        tiny_adapter(tmp_path / "adapters" / name, "llama")
    tiny_adapter(tmp_path / "outside", "llama")
    return tmp_path / "adapters"


@pytest.fixture
async def engine() -> AsyncIterator[AsyncEngine]:
    """The real engine on a fake model, with real adapter files that it puts nowhere."""
    executor = FakeExecutor(64)

    def read(path: Path) -> Content:
        file = read_adapter(path)
        return Content(file.digest, file.rank, 7, object())

    made = make_async_engine(executor=executor, adapters=Adapters(executor, read, 1), listener=None)
    yield made
    made.shutdown()


@pytest.fixture
async def client(engine: AsyncEngine, root: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(engine, ServerConfig(lora_root=str(root)), Metrics("m")) as client:
        yield client


async def load(client: httpx.AsyncClient, name: str, path: str) -> httpx.Response:
    return await client.post(LOAD, json={"lora_name": name, "lora_path": path})


async def test_an_adapter_is_a_model_of_its_name(engine: AsyncEngine, client: httpx.AsyncClient, root: Path) -> None:
    assert (await load(client, "mine", "one")).text == "Success: LoRA adapter 'mine' added successfully."
    assert (await load(client, "yours", str(root / "two"))).status_code == 200
    base, mine, _ = (await client.get("/v1/models")).json()["data"]
    assert (base["id"], base["parent"]) == ("fake", None)
    assert (mine["id"], mine["root"], mine["parent"]) == ("mine", "mine", "fake")
    assert (await client.get("/v1/models/yours")).json()["parent"] == "fake"
    ask = {"model": "mine", "prompt": "x", "max_tokens": 2}
    assert (await client.post("/v1/completions", json=ask)).json()["model"] == "mine"
    found = (await client.get("/metrics")).text
    assert 'running_lora_adapters=""' in found and 'max_lora="1"' in found
    assert 'sixfold:lora_resident{engine="0",model_name="m"} 1.0' in found
    assert 'sixfold:lora_adapters{engine="0",model_name="m"} 2.0' in found
    assert 'sixfold:lora_loads_total{engine="0",model_name="m"} 1.0' in found


async def test_a_name_that_is_gone_is_not_found(client: httpx.AsyncClient) -> None:
    await load(client, "mine", "one")
    gone = await client.post(UNLOAD, json={"lora_name": "mine"})
    assert gone.text == "Success: LoRA adapter 'mine' removed successfully."
    answer = await client.post("/v1/completions", json={"model": "mine", "prompt": "x"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
    assert (await client.post(UNLOAD, json={"lora_name": "mine"})).status_code == 404


OUTSIDE = ["../outside", "/etc", "", ".", "nothing", "one/../../outside", "link", "a\0b", "one/adapter_config.json"]


@pytest.mark.parametrize("path", [*OUTSIDE, "x" * 5000])
async def test_nothing_beyond_the_directory_is_read(
    engine: AsyncEngine, client: httpx.AsyncClient, root: Path, path: str
) -> None:
    (root / "link").symlink_to(root.parent / "outside")
    answer = await load(client, "a", path)
    assert answer.status_code == 400 and answer.json()["error"]["param"] in ("lora_path", None)
    assert not engine.adapters


async def test_names_in_use_and_broken_adapters_are_refused(client: httpx.AsyncClient, root: Path) -> None:
    assert (await load(client, "mine", "one")).status_code == 200
    for name in ("mine", "fake", "a\nb"):
        answer = await load(client, name, "two")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_name")
    (root / "two" / "adapter_model.safetensors").write_bytes(b"nothing")
    answer = await load(client, "yours", "two")
    assert answer.status_code == 400 and "cut off or damaged" in answer.json()["error"]["message"]
    assert (await client.post(LOAD, json={"lora_name": "x"})).status_code == 400
    assert (await client.post(LOAD, json={"lora_name": "x", "lora_path": "one", "more": 1})).status_code == 400


async def test_without_a_directory_there_are_no_such_endpoints(engine: AsyncEngine) -> None:
    async with client_of(engine, ServerConfig()) as client:
        for path in (LOAD, UNLOAD):
            assert (await client.post(path, json={"lora_name": "a", "lora_path": "one"})).status_code == 404


async def test_many_requests_while_adapters_take_turns(client: httpx.AsyncClient) -> None:
    """One slot, two adapters and the model itself: everybody is answered, and as alone."""
    await load(client, "mine", "one")
    await load(client, "yours", "two")

    async def ask(model: str, i: int) -> str:
        body = {"model": model, "prompt": f"{i}", "max_tokens": 8, "seed": i, "ignore_eos": True}
        answer = (await client.post("/v1/completions", json=body)).json()
        assert answer["model"] == model
        return str(answer["choices"][0]["text"])

    asks = [(model, i) for i in range(6) for model in ("mine", "yours", "fake")]
    alone = [await ask(*one) for one in asks]
    assert await asyncio.gather(*(ask(*one) for one in asks)) == alone


async def test_a_request_whose_adapter_is_lost_says_so(client: httpx.AsyncClient, root: Path) -> None:
    await load(client, "mine", "one")
    await load(client, "yours", "two")
    await client.post("/v1/completions", json={"model": "mine", "prompt": "x", "max_tokens": 1})
    (root / "two" / "adapter_config.json").unlink()
    answer = await client.post("/v1/completions", json={"model": "yours", "prompt": "x", "max_tokens": 1})
    assert answer.status_code == 500 and "cannot be read" in answer.json()["error"]["message"]


def test_the_model_and_an_adapter_may_not_share_a_name() -> None:
    engine = FakeEngine()
    engine.adapters["fake-model"] = Path("a")
    with pytest.raises(ConfigError, match="both named"):
        create_app(engine, ServerConfig())  # type: ignore[arg-type]


async def test_chat_names_adapters_too() -> None:
    engine = FakeEngine()
    engine.adapters["mine"] = Path("a")
    async with client_of(engine, ServerConfig()) as client:
        messages = [{"role": "user", "content": "x"}]
        for model in ("mine", "fake-model", "dummy", None):
            await client.post("/v1/chat/completions", json={"model": model, "messages": messages})
    assert engine.loras == ["mine", None, None, None]


async def test_beams_are_of_the_adapter(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await load(client, "mine", "one")
    asked: list[str | None] = []
    generate = engine.generate

    def noted(*args: Any, **options: Any) -> Any:
        asked.append(options["lora"])
        return generate(*args, **options)

    engine.generate = noted  # type: ignore[method-assign]
    ask = {"model": "mine", "prompt": "x", "max_tokens": 2, "use_beam_search": True, "n": 2, "temperature": 0}
    assert (await client.post("/v1/completions", json=ask)).status_code == 200
    assert set(asked) == {"mine"}
