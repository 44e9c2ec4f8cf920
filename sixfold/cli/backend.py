"""Who answers a chat: an engine in this process, or a server somewhere.

Owns: both ways of asking, behind one interface. Must not know: terminals, commands, history. Both let Ctrl-C through
as KeyboardInterrupt and end the request they had under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sixfold.cli.answer import Answer
from sixfold.config import EngineConfig
from sixfold.errors import ContextLengthError, InvalidRequestError, SixfoldError, TemplateError
from sixfold.types import SamplingParams

if TYPE_CHECKING:
    import httpx

    from sixfold.engine.async_engine import AsyncEngine
    from sixfold.engine.chat_template import ChatTemplate

Message = dict[str, str]


class Backend(Protocol):
    name: str
    context: int | None  # tokens; None when the server does not say

    def chat(self, messages: Sequence[Message], settings: Mapping[str, Any], answer: Answer) -> None:
        """Fills ``answer``; ``settings`` are fields of SamplingParams. Raises SixfoldError."""

    def close(self) -> None: ...


class LocalBackend:
    """An engine in this process. It has a thread of its own, so Ctrl-C never cuts a step in two."""

    def __init__(self, config: EngineConfig, chat_template: str | None = None) -> None:
        """The model has to be here. ``chat_template`` is a jinja file in place of the model's own."""
        from sixfold.engine.async_engine import AsyncEngine

        # the template first: a mistake in it should not cost a load
        template = None if chat_template is None else _template_file(config.model, chat_template)
        self._start(AsyncEngine.from_config(config))
        self._template = template or self._engine.chat_template

    @classmethod
    def on(cls, engine: AsyncEngine) -> LocalBackend:
        """On an engine that runs already, which :meth:`close` shuts down."""
        self = cls.__new__(cls)
        self._start(engine)
        self._template = engine.chat_template
        return self

    def _start(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._runner = asyncio.Runner()
        self.name = engine.model_name
        self.context: int | None = engine.max_model_len

    @property
    def chats(self) -> bool:
        """Whether there is a chat template."""
        return self._template is not None

    def require_template(self) -> ChatTemplate:
        """Raises TemplateError for a base model."""
        if self._template is None:
            raise TemplateError(
                f"{self.name} has no chat template", cause="it is a base model, which goes on with a text",
                remedy=f'Use `sixfold run {self.name} --raw "..."`, or give --chat-template FILE',
            )  # fmt: skip
        return self._template

    def chat(self, messages: Sequence[Message], settings: Mapping[str, Any], answer: Answer) -> None:
        text = self.require_template().render(messages)
        self._generate(self._engine.tokenizer.encode_chat(text), settings, answer)

    def complete(self, prompt: str, settings: Mapping[str, Any], answer: Answer) -> None:
        """Goes on with a text as it is."""
        self._generate(self._engine.tokenizer.encode(prompt), settings, answer)

    def close(self) -> None:
        self._engine.shutdown()
        self._runner.close()

    def _generate(self, ids: Sequence[int], settings: Mapping[str, Any], answer: Answer) -> None:
        self._runner.run(self._stream(ids, SamplingParams(**{"max_tokens": None, **settings}), answer))

    async def _stream(self, ids: Sequence[int], params: SamplingParams, answer: Answer) -> None:
        answer.begin()
        stream = self._engine.generate(ids, params)
        answer.prompt_tokens = len(ids)
        try:
            async for delta in stream:
                answer.cached_tokens = delta.num_cached_tokens or 0
                for output in delta.outputs:
                    answer.add(output.text, len(output.token_ids))
                    answer.finish_reason = output.finish_reason
                    if output.finish_reason == "error":
                        raise SixfoldError("The model could not go on", cause=str(output.stop_reason))
        finally:
            await stream.aclose()


def _template_file(model: str, file: str) -> ChatTemplate:
    from sixfold import store
    from sixfold.engine.chat_template import ChatTemplate
    from sixfold.weights.model_file import open_model

    with open_model(store.resolve(model).path) as opened:
        return ChatTemplate.from_file(Path(file), opened)


class RemoteBackend:
    """A server that speaks OpenAI's chat completions."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Asks the server for its models. ``url`` with or without ``/v1``; ``model`` None: its first one."""
        import httpx

        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        base = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
        try:
            self._client = httpx.Client(
                base_url=base, headers=headers, transport=transport, timeout=httpx.Timeout(10, read=None)
            )  # fmt: skip
        except httpx.InvalidURL as error:
            raise InvalidRequestError(f"{url!r} is not a URL", cause=str(error), param="url") from None
        self._url = base
        served = self._models()
        names = [entry["id"] for entry in served]
        if model is not None and model not in names:
            raise InvalidRequestError(
                f"{base} does not serve {model}", remedy=f"It serves {', '.join(names) or 'nothing'}", param="model"
            )
        self.name = model or names[0]
        self.context: int | None = served[names.index(self.name)].get("max_model_len")

    def chat(self, messages: Sequence[Message], settings: Mapping[str, Any], answer: Answer) -> None:
        body = {
            "model": self.name, "messages": list(messages), "stream": True,
            "stream_options": {"include_usage": True}, **settings,
        }  # fmt: skip
        answer.begin()
        with _explained(self._url), self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                response.read()
                raise _error_of(response)
            for event in _events(response.iter_lines()):
                _take(event, answer)
        if answer.finish_reason is None:
            raise SixfoldError(f"{self._url} ended the answer without a reason", remedy="Look at the server's log")

    def close(self) -> None:
        self._client.close()

    def _models(self) -> list[dict[str, Any]]:
        with _explained(self._url):
            response = self._client.get("/v1/models")
        if response.status_code != 200:
            raise _error_of(response)
        try:
            served: list[dict[str, Any]] = response.json()["data"]
            if served and all(isinstance(entry["id"], str) for entry in served):
                return served
        except (ValueError, KeyError, TypeError):
            pass
        raise SixfoldError(f"{self._url}/v1/models names no model", remedy="Is this an OpenAI-compatible server?")


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The JSON of every server-sent event up to ``[DONE]``."""
    for line in lines:
        name, _, data = line.partition(":")
        if name != "data":
            continue
        if data.strip() == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise SixfoldError("The server sent an event that is no JSON", cause=data[:200]) from None
        if "error" in event:
            raise _error(event["error"])
        yield event


def _take(event: dict[str, Any], answer: Answer) -> None:
    for choice in event.get("choices") or ():
        text = (choice.get("delta") or {}).get("content") or ""
        answer.add(text, 1 if text else 0)  # a chunk is about a token; the usage says it exactly
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    if usage := event.get("usage"):
        answer.prompt_tokens = usage.get("prompt_tokens", 0)
        answer.tokens = usage.get("completion_tokens", 0)
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _error_of(response: httpx.Response) -> SixfoldError:
    try:
        return _error(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return SixfoldError(f"{response.url} answered {response.status_code}", cause=response.text[:300].strip())


def _error(error: Any) -> SixfoldError:
    if not isinstance(error, dict):
        return SixfoldError(str(error))
    kind = ContextLengthError if error.get("code") == "context_length_exceeded" else SixfoldError
    return kind(str(error.get("message", error)))


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turns what can go wrong on the way to a server into words."""
    import httpx

    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise SixfoldError(
            f"Nothing answers at {url}", cause=str(error), remedy="Start a server with `sixfold serve`"
        ) from None
    except httpx.HTTPError as error:
        raise SixfoldError(
            f"The connection to {url} broke", cause=str(error) or type(error).__name__, remedy="Try again"
        ) from None
