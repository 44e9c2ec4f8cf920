"""What a step costs outside the executor: the engine core by itself, and the whole server as a process.

    .venv/bin/python benchmarks/overhead.py core      # microseconds a step in the engine core, one thread
    .venv/bin/python benchmarks/overhead.py sampling  # microseconds a row in the sampler
    .venv/bin/python benchmarks/overhead.py server    # CPU time of the server process a token, and of its threads
    .venv/bin/python benchmarks/overhead.py ttft      # request to first byte, outside the prefill

Everything is real (tokenizer, chat template, scheduler, uvicorn, sockets) except the executor, which answers with
logits that the real model once computed and takes as long as ``--step-ms`` says, without the GIL. The
model has to be here: ``sixfold pull smollm2``. Starts and memory of the real server: ``sixfold bench start``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROWS = 96  # distinct rows of logits
TEXT = (
    "The sea was calm that morning, and the old man watched the boats leave the harbour one after another. He had "
    "fished here for sixty years; now his knees were bad, his eyes were worse, and the young ones had engines, sonar, "
    "radios and phones. Still they came to him and asked: where will the herring be today? He looked at the birds, at "
    "the colour of the water and the line of clouds in the west, and then he told them, and he was mostly right."
)


class CachedExecutor:
    """Takes NativeExecutor's place: its logits are rows that the real model computed for TEXT, in turn."""

    tokens: list[int]  # of TEXT
    step_seconds = 0.0
    spin = False

    def __init__(
        self,
        plan: Any,
        *,
        num_pages: int,
        max_tokens: int,
        threads: int | None = None,
        isa: str = "auto",
        kv_format: str = "f16",
    ):
        from sixfold.runtime.batch import Batch
        from sixfold.runtime.native import NativeExecutor

        real = NativeExecutor(plan, num_pages=64, max_tokens=max_tokens, threads=1, isa=isa)
        tokens = np.array(self.tokens[:ROWS], np.int32)
        pages = np.arange(ROWS // 16, dtype=np.int32)
        one = np.array([ROWS], np.int32)
        real.forward(Batch(tokens, np.zeros(1, np.int32), one, pages, np.array([0, len(pages)], np.int32)))
        self.approximations = ()
        self._rows = real.logits(np.arange(ROWS, dtype=np.int32)).copy()
        self.vocab_size, self.num_pages, self.page_bytes = real.vocab_size, num_pages, real.page_bytes
        self.threads, self.isa, self.kv_format, self.numerics, self.team = 1, "cached", kv_format, "", None
        self._at = 0

    def forward(self, batch: Any) -> None:
        if self.step_seconds and self.spin:
            _spin(self.step_seconds)
        elif self.step_seconds:
            time.sleep(self.step_seconds)

    def logits(self, rows: Any) -> Any:
        self._at = (self._at + 7) % (ROWS - len(rows) + 1)
        return self._rows[self._at : self._at + len(rows)]

    def read_page(self, page: int) -> bytes:
        return bytes(self.page_bytes)

    def write_page(self, page: int, content: bytes) -> None:
        pass

    def copy_pages(self, sources: Any, targets: Any) -> None:
        pass


_WORK = np.ones(1 << 14, np.float32)


def _spin(seconds: float) -> None:
    """Busy without the GIL (numpy lets go of it), in pieces of some microseconds."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for _ in range(8):
            np.sqrt(_WORK, out=_WORK)


def use_cached_executor(model: str) -> None:
    from sixfold import store
    from sixfold.engine import loader
    from sixfold.engine.tokenizer import Tokenizer
    from sixfold.weights.model_file import open_model

    with open_model(store.resolve(model).path) as file:
        CachedExecutor.tokens = Tokenizer.from_model(file).encode(TEXT)
    assert len(CachedExecutor.tokens) >= ROWS
    loader.NativeExecutor = CachedExecutor  # type: ignore[misc,assignment]


def _load(model: str) -> Any:
    from sixfold.config import EngineConfig
    from sixfold.engine import loader

    use_cached_executor(model)
    return loader.load_engine(EngineConfig(model=model, kv_memory=256 << 20))


PARAMETERS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {"temperature": 1.0, "seed": 1},
    "top_k 40, top_p .95": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "seed": 1},
    "greedy, logprobs 5": {"temperature": 0.0, "logprobs": 5},
}


def core(options: argparse.Namespace) -> None:
    from sixfold.metrics import Metrics
    from sixfold.types import SamplingParams

    engine = _load(options.model).core
    engine.listener = Metrics("overhead")
    limits = engine.limits
    print(f"{'us a step':22}" + "".join(f"{f'batch {b}':>11}" for b in options.batches))
    for name, settings in PARAMETERS.items():
        cells = []
        for batch in options.batches:
            params = SamplingParams(max_tokens=options.tokens + 60, ignore_eos=True, **settings)
            for i in range(batch):
                engine.add(limits.accept(f"{name}-{batch}-{i}", list(range(20)), params, arrival=time.monotonic()))
            for _ in range(50):
                engine.step()
            times = []
            for _ in range(options.tokens):
                began = time.thread_time()
                engine.step()
                times.append(time.thread_time() - began)
            while engine.has_work:
                engine.step()
            cells.append(statistics.median(times) * 1e6)
        print(f"{name:22}" + "".join(f"{cell:11.1f}" for cell in cells))


def sampling(options: argparse.Namespace) -> None:
    from sixfold.engine.sampler import Sampler
    from sixfold.engine.token_rules import NO_RULES
    from sixfold.types import SamplingParams

    class Row:
        def __init__(self, params: SamplingParams) -> None:
            self.params, self.seed, self.index, self.prompt_length = params, 1, 0, 4
            self.token_ids, self.forbidden_ids = list(range(20)), frozenset()
            self.sampler_state = self.constraint = None
            self.rules = NO_RULES

    real = _load(options.model).core.runner.executor
    small = np.array(real._rows)
    large = np.concatenate([small, *[small - 3 - i for i in range(5)]], axis=1)[:, :262_144].copy()
    sampler = Sampler()
    print(f"{'us a row':22}{small.shape[1]:>11}{large.shape[1]:>11}")
    settings = PARAMETERS | {
        "top_p .95": {"top_p": 0.95},
        "min_p .05": {"min_p": 0.05},
        "repetition 1.1": {"temperature": 0.0, "repetition_penalty": 1.1},
        "temperature 2, top_p .95": {"temperature": 2.0, "top_p": 0.95},
    }
    for name, values in settings.items():
        cells = []
        for table in (small, large):
            rows = [Row(SamplingParams(**values)) for _ in range(32)]
            times = []
            for turn in range(40):
                at = turn % 60
                began = time.thread_time()
                sampler.sample(rows, table[at : at + 32])
                times.append((time.thread_time() - began) / 32)
            cells.append(statistics.median(times) * 1e6)
        print(f"{name:22}" + "".join(f"{cell:11.1f}" for cell in cells))


def child(options: argparse.Namespace) -> None:
    """The server process; says its port on stdout."""
    from sixfold.config import EngineConfig, ServerConfig
    from sixfold.server.serve import run

    CachedExecutor.step_seconds, CachedExecutor.spin = options.step_ms / 1000, options.spin
    use_cached_executor(options.model)
    engine = EngineConfig(model=options.model, kv_memory=256 << 20, max_num_seqs=64)
    profile: Any = None
    if options.profile:
        import cProfile

        profile = cProfile.Profile()
        profile.enable()
    run(engine, ServerConfig(port=0), on_ready=lambda url, app: print(url, flush=True))
    if profile is not None:
        profile.disable()
        profile.dump_stats(options.profile)


@contextlib.contextmanager
def serving(options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """A server with a cached executor in a process of its own: (process id, port)."""
    command = [sys.executable, __file__, "child", "--model", options.model, "--step-ms", str(options.step_ms)]
    command += ["--spin"] * options.spin + (["--profile", options.profile] if options.profile else [])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline().rsplit(":", 1)[1])
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid: int) -> dict[int, float]:
    """CPU time of each thread so far, in seconds."""
    times = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            times[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return times


def request_bytes(options: argparse.Namespace, kind: str, max_tokens: int, **more: Any) -> bytes:
    body: dict[str, Any] = {"model": options.model, "stream": True, "max_tokens": max_tokens, "ignore_eos": True}
    if kind == "chat":
        path, body = "chat/completions", body | {"messages": [{"role": "user", "content": TEXT[:60]}]}
    else:
        path, body = "completions", body | {"prompt": TEXT[:100]}
    data = json.dumps(body | {"temperature": 0} | more).encode()
    head = (
        f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def _stream(port: int, request: bytes) -> tuple[int, int]:
    """(events, reads) of one streamed answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(request)
    events = reads = 0
    tail = b""
    while b"data: [DONE]" not in tail:
        piece = await reader.read(1 << 16)
        assert piece, "the server closed the stream"
        reads += 1
        events += piece.count(b"data: {")
        tail = (tail + piece)[-32:]
    writer.close()
    return events, reads


async def _many(port: int, requests: list[bytes]) -> list[tuple[int, int]]:
    return await asyncio.gather(*(_stream(port, request) for request in requests))


def server(options: argparse.Namespace) -> None:
    print(f"step of {options.step_ms} ms, {'spinning' if options.spin else 'sleeping'}; CPU in us a token, by thread")
    print(f"{'':24}{'event loop':>11}{'engine':>11}{'total':>11}{'us a step':>11}{'over step':>11}{'reads/token':>12}")
    with serving(options) as (pid, port):
        for kind in ("completions", "chat"):
            for batch in options.batches:
                asyncio.run(_many(port, [request_bytes(options, kind, 20)] * batch))
                before, began = cpu_seconds(pid), time.perf_counter()
                counts = asyncio.run(_many(port, [request_bytes(options, kind, options.tokens)] * batch))
                wall = time.perf_counter() - began
                used = {t: c - before.get(t, 0.0) for t, c in cpu_seconds(pid).items()}
                tokens = batch * options.tokens
                loop = used.pop(pid) / tokens * 1e6
                engine = max(used.values()) / tokens * 1e6
                total = loop + sum(used.values()) / tokens * 1e6
                step = wall / options.tokens * 1e6
                reads = sum(r for _, r in counts) / tokens
                print(
                    f"{kind + f', batch {batch}':24}{loop:11.1f}{engine:11.1f}{total:11.1f}{step:11.1f}"
                    f"{step - options.step_ms * 1000:11.1f}{reads:12.2f}"
                )


def ttft(options: argparse.Namespace) -> None:
    with serving(options) as (_, port):
        print(f"{'ms to the first event':24}{'p50':>9}{'p95':>9}{'max':>9}    (prefill of {options.step_ms} ms in it)")
        for kind in ("completions", "chat"):
            request = request_bytes(options, kind, 2)
            for _ in range(5):
                _first_event(port, request)
            times = []
            for _ in range(options.repeat):
                times.append(_first_event(port, request) * 1000)
                time.sleep(0.01)
            times.sort()
            print(f"{kind:24}{times[len(times) // 2]:9.2f}{times[int(len(times) * 0.95)]:9.2f}{times[-1]:9.2f}")


def _first_event(port: int, request: bytes) -> float:
    import socket

    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        data = b""
        while b"data: {" not in data:
            data += connection.recv(1 << 16)
        elapsed = time.perf_counter() - began
        while b"[DONE]" not in data:
            data += connection.recv(1 << 16)
        return elapsed


COMMANDS = {c.__name__: c for c in (core, sampling, server, ttft, child)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batches", type=lambda text: [int(b) for b in text.split(",")], default=[1, 8, 32, 64])
    parser.add_argument("--tokens", type=int, default=400, help="tokens (steps) measured")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--step-ms", type=float, default=0.0, help="how long the executor takes")
    parser.add_argument("--spin", action="store_true", help="the executor keeps its core busy instead of sleeping")
    parser.add_argument("--profile", default="", help="where the server process leaves its cProfile statistics")
    options = parser.parse_args()
    COMMANDS[options.command](options)


if __name__ == "__main__":
    main()
