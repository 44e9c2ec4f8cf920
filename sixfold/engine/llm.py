"""The offline API: prompts in, finished outputs out, with the shape that vLLM users know.

Owns: the order of results and the mapping of prompts to tokens. Must not know: threads, asyncio, HTTP.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as List
from pathlib import Path
from typing import Any, NamedTuple, Self

from sixfold import config as settings
from sixfold import store
from sixfold.config import EngineConfig
from sixfold.engine.beam_search import BeamSearch, BeamSearchParams, beam_output, next_position
from sixfold.engine.best_of import select, widen
from sixfold.engine.collect import Collector
from sixfold.engine.loader import LoadedEngine, load_engine
from sixfold.engine.sequence import Request
from sixfold.errors import ConfigError, InvalidRequestError, TemplateError
from sixfold.types import RequestOutput, SamplingParams

# A text, or {"prompt_token_ids": [...]} (or {"prompt": "..."}) with its "cache_salt", "reuse_context" and "lora".
Prompt = str | Mapping[str, Any]
Message = Mapping[str, Any]


class _Tokens(NamedTuple):
    """A prompt as it is queued."""

    text: str | None
    ids: List[int]
    cache_salt: str | None = None
    reuse_context: object = None  # None: what the engine does by default
    lora: str | None = None


class LLM:
    """A model in this process. Not thread-safe; for many callers at once there is :class:`AsyncEngine`.

    ``lora={"name": "directory"}`` loads adapters, one of which a prompt may name.
    ``options`` are the fields of :class:`EngineConfig` (environment and file apply as they do to the server).
    A model that is not here yet is pulled. ``prefix_cache=False`` computes every prompt from its beginning.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        known = {field.name for field in dataclasses.fields(EngineConfig)}
        for name in options.keys() - known:
            raise ConfigError(f"LLM has no option {name}", remedy=f"Known options: {', '.join(sorted(known))}")
        config = settings.load(EngineConfig, "engine", {"model": model, **options})
        store.pull(config.model)
        self._start(load_engine(config))

    @classmethod
    def from_loaded(cls, loaded: LoadedEngine) -> Self:
        """On an engine that is loaded already."""
        self = cls.__new__(cls)
        self._start(loaded)
        return self

    def _start(self, loaded: LoadedEngine) -> None:
        self.tokenizer = loaded.tokenizer
        self.chat_template = loaded.chat_template
        self._core = loaded.core
        self._ids = itertools.count()
        self._receivers: dict[str, Callable[[RequestOutput], None]] = {}

    def generate(
        self,
        prompts: Prompt | List[Prompt],
        sampling_params: SamplingParams | List[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Finished outputs in the order of the prompts.

        One set of parameters for all prompts, or one each. All prompts are checked before the first one runs.
        ``use_tqdm`` shows a progress bar. Raises InvalidRequestError and ContextLengthError.
        """
        several: List[Prompt] = [prompts] if isinstance(prompts, str | Mapping) else prompts
        return self._complete([self._tokens(prompt) for prompt in several], sampling_params, use_tqdm)

    def chat(
        self,
        messages: List[Message] | List[List[Message]],
        sampling_params: SamplingParams | List[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        add_generation_prompt: bool = True,
        tools: List[Mapping[str, Any]] | None = None,
        lora: str | None = None,
    ) -> list[RequestOutput]:
        """Like :meth:`generate` for one conversation, or a list of them. Raises TemplateError for a base model.

        ``lora``: the name of an adapter for all of them.
        """
        if self.chat_template is None:
            raise TemplateError(
                "The model has no chat template", cause="it is a base model", remedy="Use generate(), or a chat model"
            )
        conversations: Any = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = []
        for conversation in conversations:
            text = self.chat_template.render(
                conversation, add_generation_prompt=add_generation_prompt, tools=tools
            )  # fmt: skip
            prompts.append(_Tokens(text, self.tokenizer.encode_chat(text), lora=lora))
        return self._complete(prompts, sampling_params, use_tqdm)

    def beam_search(self, prompts: Prompt | List[Prompt], params: BeamSearchParams) -> list[RequestOutput]:
        """For each prompt the ``beam_width`` best continuations, best first, with their ``cumulative_logprob``.

        Each round is one batch over all prompts and beams. Raises InvalidRequestError and ContextLengthError.
        """
        several: List[Prompt] = [prompts] if isinstance(prompts, str | Mapping) else prompts
        tokens = [self._tokens(prompt) for prompt in several]
        for prompt in tokens:
            self._core.limits.check(prompt.ids, dataclasses.replace(params.step, max_tokens=params.max_tokens))
        searches = [BeamSearch(params, self.tokenizer.eos_ids) for _ in tokens]
        while any(search.live for search in searches):
            asks = [
                prompt._replace(ids=[*prompt.ids, *beam.token_ids])
                for prompt, search in zip(tokens, searches, strict=True)
                for beam in search.live
            ]
            found = iter(self._complete(asks, params.step, use_tqdm=False))
            for search in searches:
                search.extend([next_position(next(found)) for _ in search.live])
        return [
            beam_output(
                f"offline-{next(self._ids)}", prompt.ids, prompt.text, search, self.tokenizer.decode, params.logprobs
            )
            for prompt, search in zip(tokens, searches, strict=True)
        ]

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Deltas of one request as they come. Closing the iterator ends the request."""
        request = self._accept(self._tokens(prompt), sampling_params or SamplingParams())
        return self._stream(request)

    def load_lora(self, name: str, path: str | Path) -> None:
        """Loads an adapter in PEFT's format. Raises InvalidRequestError, ModelFileError, UnsupportedModelError."""
        self._core.adapters.load(name, Path(path))

    def unload_lora(self, name: str) -> None:
        """Raises ModelNotFoundError."""
        self._core.adapters.retire(self._core.adapters.unload(name))

    def reset_prefix_cache(self) -> None:
        """Forgets all cached prefixes."""
        self._core.reset_prefix_cache()

    def close(self) -> None:
        """Ends what is under way and lets go of the model."""
        for request_id in list(self._receivers):
            self._core.abort(request_id)
        self._receivers.clear()
        self._core.close()
        del self._core

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _complete(
        self,
        prompts: List[_Tokens],
        params: SamplingParams | List[SamplingParams] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        if params is None or isinstance(params, SamplingParams):
            each: List[SamplingParams] = [params or SamplingParams()] * len(prompts)
        else:
            each = params
        if len(each) != len(prompts):
            raise InvalidRequestError(
                f"There are {len(prompts)} prompts and {len(each)} sampling parameters",
                remedy="Give one set for all prompts, or one each",
            )
        requests = [self._accept(prompt, widen(one)) for prompt, one in zip(prompts, each, strict=True)]
        collectors = {request.id: Collector() for request in requests}
        receivers = {request_id: collector.add for request_id, collector in collectors.items()}
        with self._running(requests, receivers), _progress(use_tqdm, len(requests)) as report:
            left = set(receivers)
            while left:
                self._step()
                left &= self._receivers.keys()
                report(len(requests) - len(left))
        return [select(collector.result(), one) for collector, one in zip(collectors.values(), each, strict=True)]

    def _stream(self, request: Request) -> Iterator[RequestOutput]:
        arrived: deque[RequestOutput] = deque()
        with self._running([request], {request.id: arrived.append}):
            while arrived or request.id in self._receivers:
                if arrived:
                    yield arrived.popleft()
                else:
                    self._step()

    def _accept(self, prompt: _Tokens, params: SamplingParams) -> Request:
        return self._core.limits.accept(
            f"offline-{next(self._ids)}", prompt.ids, params, arrival=time.monotonic(), prompt=prompt.text,
            cache_salt=prompt.cache_salt, reuse_context=prompt.reuse_context,
            lora=self._core.adapters.named(prompt.lora),
        )  # fmt: skip

    @contextlib.contextmanager
    def _running(
        self, requests: List[Request], receivers: Mapping[str, Callable[[RequestOutput], None]]
    ) -> Iterator[None]:
        """Queues the requests; whatever is unfinished at the end is aborted."""
        self._receivers.update(receivers)
        for request in requests:
            self._core.add(request)
        try:
            yield
        finally:
            for request in requests:
                if self._receivers.pop(request.id, None) is not None:
                    self._core.abort(request.id)

    def _step(self) -> None:
        for output in self._core.step():
            receive = self._receivers.pop if output.finished else self._receivers.__getitem__
            receive(output.request_id)(output)

    def _tokens(self, prompt: Prompt) -> _Tokens:
        if isinstance(prompt, str):
            return _Tokens(prompt, self.tokenizer.encode(prompt))
        if isinstance(prompt, Mapping):
            text = prompt.get("prompt")
            others = prompt.get("cache_salt"), prompt.get("reuse_context"), prompt.get("lora")
            if "prompt_token_ids" in prompt:
                return _Tokens(text, list(prompt["prompt_token_ids"]), *others)
            if isinstance(text, str):
                return _Tokens(text, self.tokenizer.encode(text), *others)
        raise InvalidRequestError(
            f"A prompt is a {type(prompt).__name__} that says no text or tokens",
            remedy='Use a string or {"prompt_token_ids": [...]}',
            param="prompt",
        )


@contextlib.contextmanager
def _progress(shown: bool, total: int) -> Iterator[Callable[[int], None]]:
    if not shown:
        yield lambda done: None
        return
    from rich.progress import Progress  # heavy, and only for a terminal

    with Progress() as bar:
        task = bar.add_task("prompts", total=total)
        yield lambda done: bar.update(task, completed=done)
