"""A server that is killed finds after its restart what it had computed before."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

PROMPT = [random.Random(1).randrange(1000, 40000) for _ in range(400)]


@contextlib.contextmanager
def serving(model: Path, directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [
        sys.executable, "-m", "sixfold", "serve", str(model), "--port", "0", "--kv-memory", "48MiB",
        "--kv-disk", str(directory), "--served-model-name", "smollm2",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            command_line = next(line for line in server.stdout if line.startswith("curl -N "))
            yield server, command_line.split()[2].removesuffix("/v1/chat/completions")
        finally:
            server.kill()


def ask(url: str) -> tuple[str, int]:
    """(text, cached tokens)"""
    body = {"model": "smollm2", "prompt": PROMPT, "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
    return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def stored(url: str) -> int:
    lines = httpx.get(f"{url}/metrics", timeout=20).text.splitlines()
    (line,) = (line for line in lines if line.startswith("sixfold:kv_tier_stored_total"))
    assert 'tier="disk"' in line
    return int(float(line.split()[-1]))


@pytest.mark.model
def test_a_killed_server_finds_what_it_had_computed(smollm2_path: Path, tmp_path: Path) -> None:
    with serving(smollm2_path, tmp_path) as (server, url):
        wanted, cached = ask(url)
        assert cached == 0
        deadline = time.monotonic() + 30
        while stored(url) < 27 and time.monotonic() < deadline:  # full pages of 400 + 39 tokens
            time.sleep(0.02)
        server.kill()  # SIGKILL: nothing can be stored any more
        server.wait()
    with serving(smollm2_path, tmp_path) as (server, url):
        text, cached = ask(url)
    assert text == wanted and cached == 384  # the whole pages of 399 tokens: the last one is always run
