"""Both backends: an engine in this process, and a server over a transport that needs no socket."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import httpx
import pytest

from sixfold.cli.answer import Answer
from sixfold.cli.backend import LocalBackend, RemoteBackend
from sixfold.engine.chat_template import ChatTemplate
from sixfold.errors import ContextLengthError, InvalidRequestError, SixfoldError, TemplateError
from tests.fakes import make_async_engine

MESSAGES = [{"role": "user", "content": "hello"}]
TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
SETTINGS = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 8}


@pytest.fixture
def local() -> Iterator[LocalBackend]:
    backend = LocalBackend.on(make_async_engine(chat_template=ChatTemplate(TEMPLATE)))
    yield backend
    backend.close()


def test_an_answer_comes_piece_by_piece_with_its_counts(local: LocalBackend) -> None:
    pieces: list[str] = []
    answer = Answer(pieces.append)
    local.chat(MESSAGES, SETTINGS, answer)
    assert "".join(pieces) == answer.text and answer.tokens == 8 and answer.finish_reason == "length"
    assert answer.prompt_tokens == len("user:hello;")
    assert 0 < answer.first_token_seconds <= answer.seconds and answer.tokens_per_second > 0


def test_ctrl_c_ends_the_request_and_nothing_else(local: LocalBackend) -> None:
    whole = Answer()
    local.chat(MESSAGES, SETTINGS, whole)
    answer = Answer(lambda text: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        local.chat(MESSAGES, {**SETTINGS, "max_tokens": 900}, answer)
    assert 1 <= answer.tokens < 900 and answer.finish_reason is None
    again = Answer()
    local.chat(MESSAGES, SETTINGS, again)
    assert again.text == whole.text
    assert local._engine.stats().kv_pages_used == 0


def test_too_long_is_said_before_anything_runs(local: LocalBackend) -> None:
    with pytest.raises(ContextLengthError, match="1024"):
        local.chat([{"role": "user", "content": "x" * 2000}], {}, Answer())


def test_a_base_model_does_not_chat() -> None:
    backend = LocalBackend.on(make_async_engine())
    with pytest.raises(TemplateError, match=r"--raw"):
        backend.chat(MESSAGES, {}, Answer())
    answer = Answer()
    backend.complete("hello", SETTINGS, answer)
    assert answer.prompt_tokens == 5 and answer.tokens == 8
    backend.close()


class Served:
    """What a server answers: ``events`` after the model list, or an error."""

    def __init__(self, *events: object, status: int = 200) -> None:
        self.events = events
        self.status = status
        self.bodies: list[dict] = []
        self.headers: list[httpx.Headers] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.headers.append(request.headers)
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m", "max_model_len": 64}, {"id": "other"}]})
        self.bodies.append(json.loads(request.content))
        if self.status != 200:
            return httpx.Response(self.status, json=self.events[0])
        lines = [f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in self.events]
        return httpx.Response(200, text=": comment\n\n" + "".join(lines))


def delta(text: str, reason: str | None = None) -> dict:
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


def remote(served: object, **options: str) -> RemoteBackend:
    return RemoteBackend(options.pop("url", "http://server"), transport=httpx.MockTransport(served), **options)


@pytest.mark.parametrize("url", ["http://server", "http://server/v1/", "server:80", "server/v1"])
def test_a_server_streams(url: str) -> None:
    served = Served(delta("He"), delta("llo", "stop"), USAGE, "[DONE]")
    backend = remote(served, url=url, api_key="k")
    answer = Answer()
    backend.chat(MESSAGES, {"temperature": 0.5}, answer)
    assert (backend.name, backend.context) == ("m", 64)
    assert (answer.text, answer.prompt_tokens, answer.tokens, answer.finish_reason) == ("Hello", 7, 3, "stop")
    (body,) = served.bodies
    assert body["model"] == "m" and body["messages"] == MESSAGES and body["stream"] and body["temperature"] == 0.5
    assert all(headers["authorization"] == "Bearer k" for headers in served.headers)


def test_another_model_of_the_server() -> None:
    assert remote(Served(), model="other").context is None
    with pytest.raises(InvalidRequestError, match="It serves m, other"):
        remote(Served(), model="absent")


@pytest.mark.parametrize(
    ("events", "status", "kind", "says"),
    [
        ([{"error": {"message": "Too long.", "code": "context_length_exceeded"}}], 400, ContextLengthError, "Too long"),
        ([{"error": {"message": "No key."}}], 401, SixfoldError, "No key"),
        (["not what we expect"], 502, SixfoldError, "502"),
        ([delta("a"), {"error": {"message": "It broke."}}], 200, SixfoldError, "It broke"),
        ([delta("a"), "{"], 200, SixfoldError, "no JSON"),
        ([delta("a")], 200, SixfoldError, "without a reason"),
    ],
)
def test_what_a_server_does_wrong(events: list, status: int, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        remote(Served(*events, status=status)).chat(MESSAGES, {}, Answer())


def test_no_server_and_no_models() -> None:
    def refused(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(SixfoldError, match="sixfold serve"):
        remote(refused)
    with pytest.raises(SixfoldError, match="names no model"):
        remote(lambda request: httpx.Response(200, json={"data": []}))
    with pytest.raises(SixfoldError, match="404"):
        remote(lambda request: httpx.Response(404, text="nginx"))
