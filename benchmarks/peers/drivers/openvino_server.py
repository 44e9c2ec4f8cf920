"""A small OpenAI-compatible server over OpenVINO GenAI's continuous batching pipeline, for the load test only.

OpenVINO's own server is no Python package, and those on PyPI run one request after another, which would make the peer
look worse than it is. One thread steps the pipeline; each request waits for its tokens on the event loop. It answers
``/v1/completions`` with a text or token ids, streaming, greedy, ``ignore_eos``: what the load generator asks for.

Usage: openvino_server.py --model DIRECTORY --port N --threads N --sequences N
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import queue
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from openvino_driver import greedy, pipeline_of


@dataclass
class Job:
    """A request on its way through the pipeline. ``tokens`` gets lists of new token ids, then None."""

    prompt: np.ndarray[Any, Any]
    new_tokens: int
    loop: asyncio.AbstractEventLoop
    tokens: asyncio.Queue[list[int] | None] = field(default_factory=asyncio.Queue)

    def tell(self, news: list[list[int] | None]) -> None:
        def put() -> None:
            for new in news:
                self.tokens.put_nowait(new)

        self.loop.call_soon_threadsafe(put)


class Worker(threading.Thread):
    """Owns the pipeline: takes jobs between steps, hands out what each step gave."""

    def __init__(self, model: str, threads: int, sequences: int) -> None:
        super().__init__(daemon=True)
        self.pipeline = pipeline_of(model, threads, sequences)
        self.tokenizer = self.pipeline.get_tokenizer()
        self.jobs: queue.Queue[Job] = queue.Queue()

    def run(self) -> None:
        numbers = itertools.count()
        running: list[tuple[Job, Any, int]] = []  # with its handle and the tokens it still has to give
        while True:
            while not running or not self.jobs.empty():
                job = self.jobs.get()
                tensor = openvino.Tensor(job.prompt)
                handle = self.pipeline.add_request(next(numbers), tensor, greedy(job.new_tokens))
                running.append((job, handle, job.new_tokens))
            self.pipeline.step()
            running = [left for one in running if (left := self._hand_out(*one)) is not None]

    def _hand_out(self, job: Job, handle: Any, left: int) -> tuple[Job, Any, int] | None:
        news: list[list[int] | None] = []
        if handle.can_read():
            tokens = [token for output in handle.read().values() for token in output.generated_ids]
            left -= len(tokens)
            news.append(tokens)
        if left <= 0:
            news.append(None)
        if news:
            job.tell(news)
        return (job, handle, left) if left > 0 else None


def application(worker: Worker) -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "bench", "object": "model"}]}

    @app.post("/v1/completions")
    async def completions(request: Request) -> StreamingResponse:
        body = await request.json()
        prompt = body["prompt"]
        if isinstance(prompt, str):
            ids = np.asarray(worker.tokenizer.encode(prompt).input_ids.data, np.int64)
        else:
            ids = np.asarray([prompt], np.int64)
        job = Job(ids, int(body.get("max_tokens", 16)), asyncio.get_running_loop())
        worker.jobs.put(job)
        return StreamingResponse(events(worker, job), media_type="text/event-stream")

    return app


async def events(worker: Worker, job: Job) -> AsyncIterator[str]:
    """A chunk a step, as far as whole characters go: one token may end in the middle of one."""
    pending: list[int] = []
    count = 0
    while (tokens := await job.tokens.get()) is not None:
        count += len(tokens)
        pending += tokens
        text = worker.tokenizer.decode(pending)
        if text.endswith("\ufffd") and len(pending) < 8:
            text = ""
        else:
            pending.clear()
        yield event([{"index": 0, "text": text, "finish_reason": None}])
    yield event([{"index": 0, "text": "", "finish_reason": "length"}])
    prompt = int(job.prompt.shape[1])
    usage = {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}
    yield event([], usage=usage)
    yield "data: [DONE]\n\n"


def event(choices: list[dict[str, Any]], **more: Any) -> str:
    content = {"id": "cmpl", "object": "text_completion", "model": "bench", "choices": choices, **more}
    return f"data: {json.dumps(content)}\n\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=64)
    options = parser.parse_args()
    worker = Worker(options.model, options.threads, options.sequences)
    worker.start()
    uvicorn.run(application(worker), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
