"""The served model as a process, and what is printed for whoever started it."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from sixfold.cli.serve import curl
from tests.adapters import tiny_adapter


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server and everything it printed up to its last line."""
    command = [sys.executable, "-m", "sixfold", "serve", *arguments, "--port", "0", "--kv-memory", "4M"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            printed = ""
            while "Ctrl-C" not in printed and (line := process.stdout.readline()):
                printed += line
            yield process, printed
        finally:
            process.kill()


def pasted(printed: str) -> tuple[str, dict[str, str], bytes]:
    """URL, headers and body of the printed curl, as a shell would read it."""
    command = printed[printed.index("curl -N") :].partition("\n\n")[0].replace("\\\n", " ")
    words = shlex.split(command)
    headers = [words[i + 1] for i, word in enumerate(words) if word == "-H"]
    return words[2], dict(h.split(": ", 1) for h in headers), words[words.index("-d") + 1].encode()


def test_the_printed_curl_streams_and_ctrl_c_ends_it(chat_model: str) -> None:
    with serving(chat_model, "--served-model-name", "tiny") as (process, printed):
        assert "tiny at http://127.0.0.1:" in printed and "256 tokens" in printed and "MiB KV" in printed
        url, headers, body = pasted(printed)
        response = httpx.post(url, headers=headers, content=body, timeout=20)
        assert response.status_code == 200 and response.text.endswith("data: [DONE]\n\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_a_base_model_gets_a_completions_curl_and_a_key_is_not_printed(base_model: str) -> None:
    with serving(base_model, "--api-key", "secret-key") as (_, printed):
        assert "secret-key" not in printed and "with the API key only" in printed
        url, headers, body = pasted(printed.replace("$SIXFOLD_API_KEY", "secret-key"))
        assert url.endswith("/v1/completions") and "prompt" in json.loads(body)
        assert httpx.post(url, headers=headers, content=body, timeout=20).status_code == 200
        assert httpx.post(url, content=body).status_code == 401


@pytest.mark.parametrize("switch", [(), ("--no-prefix-cache",)])
def test_the_prefix_cache_can_be_switched_off(chat_model: str, switch: tuple[str, ...]) -> None:
    with serving(chat_model, *switch) as (_, printed):
        url = pasted(printed)[0].replace("/chat", "")
        answers = [httpx.post(url, json={"prompt": [5] * 40, "max_tokens": 2}, timeout=20).json() for _ in range(2)]
    details = [answer["usage"]["prompt_tokens_details"] for answer in answers]
    assert details == ([None, None] if switch else [{"cached_tokens": 0}, {"cached_tokens": 39}])


@pytest.mark.parametrize("url", ["redis://me:hunter2@host/0", "redis://host/0?password=hunter2"])
def test_a_password_on_the_command_line_is_refused_and_not_repeated(sixfold, url: str) -> None:
    done = sixfold("serve", "no-such-model", "--kv-redis", url)
    assert done.exit_code == 2 and "SIXFOLD_KV_REDIS" in done.output and "hunter2" not in done.output


def test_where_kv_is_kept_is_said_without_secrets(chat_model: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SIXFOLD_KV_REDIS", "redis://me:hunter2@127.0.0.1:1/0?ttl=5")
    with serving(chat_model, "--kv-disk", tmp_path / "kv") as (_, printed):
        text = "".join(printed)
    assert str(tmp_path / "kv")[:20] in text and "redis://127.0.0.1:1/0" in text and "hunter2" not in text


def test_adapters_are_served_by_name(chat_model: str, tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "adapter", "qwen2")
    with serving(chat_model, "--lora", f"mine={adapter}", "--max-loras", "2") as (_, printed):
        url = pasted(printed)[0].split("/v1/")[0]
        assert [card["id"] for card in httpx.get(f"{url}/v1/models").json()["data"]][1:] == ["mine"]
        texts = [
            httpx.post(f"{url}/v1/completions", json={"prompt": [5] * 40, "temperature": 0, **model}, timeout=20).json()
            for model in ({}, {"model": "mine"})
        ]
    assert texts[0]["choices"][0]["text"] != texts[1]["choices"][0]["text"]


def test_a_taken_port_is_said_at_once(sixfold) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = sixfold("serve", "no-such-model", "--port", taken.getsockname()[1])
    assert done.exit_code == 1 and "--port" in done.stderr and "no-such-model" not in done.stderr


def test_no_pull_needs_a_model_that_is_here(sixfold) -> None:
    done = sixfold("serve", "smollm2", "--port", 0, "--no-pull")
    assert done.exit_code == 1 and "sixfold pull smollm2" in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [
        ("--lora", "nothing", 2),
        ("--max-loras", "0", 1),
        ("--port", "70000", 1),
        ("--isa", "mmx", 1),
        ("--log-level", "loud", 2),
        ("--drain-seconds", "-1", 1),
    ],
)
def test_mistakes(sixfold, option: str, value: str, code: int) -> None:
    done = sixfold("serve", "no-such-model", option, value)
    assert done.exit_code == code and "no-such-model" not in done.stderr


def test_a_name_with_quotes_survives_the_shell() -> None:
    command = curl("http://h", "it's", chat=True, key=True).replace("\\\n", " ")
    assert json.loads(shlex.split(command)[-1])["model"] == "it's"
