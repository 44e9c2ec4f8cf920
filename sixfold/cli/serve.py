"""``sixfold serve``: a model behind HTTP.

Owns: the flags and what is printed when the server is ready. Must not know: how requests are answered.
"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sixfold.cli import console
from sixfold.cli.options import (
    KVS3,
    AcceptLicense,
    Isa,
    KVDisk,
    KVDiskSize,
    KVFormat,
    KVMemory,
    KVRedis,
    Lora,
    MaxLoras,
    MaxModelLen,
    OptionalModel,
    PrefixCache,
    Pull,
    ReuseContext,
    Speculate,
    Template,
    Threads,
    adapters,
)

if TYPE_CHECKING:
    from sixfold.cli.model_card import ModelCard
    from sixfold.config import EngineConfig, ServerConfig

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # where a client on this machine finds a server on all addresses


def serve(
    model: OptionalModel = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0: all.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="0: any free port.  [default: 8000]")] = None,
    api_key: Annotated[str | None, typer.Option(help="What clients must send; better in SIXFOLD_API_KEY.")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="The model's name in the API.")] = None,
    chat_template: Template = None,
    max_model_len: MaxModelLen = None,
    kv_memory: KVMemory = None,
    kv_format: KVFormat = None,
    prefix_cache: PrefixCache = None,
    reuse_context: ReuseContext = None,
    speculate: Speculate = None,
    kv_disk: KVDisk = None,
    kv_disk_size: KVDiskSize = None,
    kv_redis: KVRedis = None,
    kv_s3: KVS3 = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Sequences in one step.  [default: 64]")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Tokens in one step.  [default: 512]")] = None,
    max_queue: Annotated[int | None, typer.Option(help="Requests that may wait.  [default: 1024]")] = None,
    lora: Lora = None,
    max_loras: MaxLoras = None,
    lora_root: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Let clients load adapters below this directory (/v1/load_lora_adapter)."),
    ] = None,
    threads: Threads = None,
    isa: Isa = None,
    drain_seconds: Annotated[
        float | None, typer.Option(help="How long running requests may go on after SIGTERM.  [default: 30]")
    ] = None,
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = "warning",
    pull: Pull = True,
    accept_license: AcceptLicense = False,
) -> None:
    """Serve a model over HTTP under OpenAI's API."""
    from sixfold import config

    engine = config.load(
        config.EngineConfig,
        "engine",
        {
            "model": model, "max_model_len": max_model_len, "kv_memory": kv_memory,
            "kv_format": kv_format, "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens, "max_queue": max_queue, "threads": threads, "isa": isa,
            "prefix_cache": prefix_cache, "reuse_context": reuse_context, "speculation": speculate,
            "kv_disk": kv_disk,
            "kv_disk_bytes": kv_disk_size, "kv_redis": kv_redis, "kv_s3": kv_s3,
            "lora": adapters(lora), "max_loras": max_loras,
        },
    )  # fmt: skip
    server = config.load(
        config.ServerConfig,
        "server",
        {
            "host": host, "port": port, "api_key": api_key, "served_model_name": served_model_name,
            "chat_template": chat_template, "drain_seconds": drain_seconds, "lora_root": lora_root,
        },
    )  # fmt: skip
    _run(engine, server, _level(log_level), pull=pull, accept_license=accept_license)


def _run(engine: EngineConfig, server: ServerConfig, level: str, *, pull: bool, accept_license: bool) -> None:
    import logging

    from sixfold.cli.fetch import fetch
    from sixfold.cli.model_card import read_card
    from sixfold.server.serve import bind, run

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=level.upper())
    bind(server).close()  # a taken port is said before anything is downloaded
    card = read_card(fetch(engine.model, accept_license=accept_license, pull=pull))
    typer.echo(f"Loading {engine.model} ({console.size(card.packed_bytes)}) ...", err=True)
    run(engine, server, on_ready=lambda url, app: _ready(url, app, engine, server, card), log_level=level)


def _level(name: str) -> str:
    if name.lower() not in ("debug", "info", "warning", "error"):
        raise typer.BadParameter(f"{name!r} is none of debug, info, warning, error", param_hint="--log-level")
    return name.lower()


def _ready(url: str, app: Any, config: EngineConfig, server: ServerConfig, card: ModelCard) -> None:
    """Says what is served, what it takes, and how to ask it something."""
    from sixfold.runtime.batch import PAGE_SIZE

    state = app.state.server
    engine = state.engine
    executor = engine.core.runner.executor
    pages = engine.stats().kv_pages_total
    reach = url
    for anywhere, here in _ANYWHERE.items():
        reach = reach.replace(f"//{anywhere}:", f"//{here}:")
    console.facts(
        f"Sixfold serves {state.names[0]} at {url}",
        [
            ("model", f"{card.architecture}, {console.quantity(card.parameters)} parameters, "
                      f"{'chat' if engine.chat_template else 'base model without a chat template'}"),
            ("context", f"{engine.max_model_len} tokens"),
            ("memory", f"{console.size(card.packed_bytes)} weights, up to "
                       f"{console.size(pages * executor.page_bytes)} KV in {executor.kv_format} "
                       f"({pages * PAGE_SIZE} tokens)"),
            *_beyond_memory(config),
            ("compute", f"{executor.threads} threads, {executor.isa}"),
            ("access", "with the API key only" if server.api_key else "no API key"),
        ],
    )  # fmt: skip
    chat = engine.chat_template is not None
    typer.echo(f"\nTry it:\n\n{curl(reach, state.names[0], chat=chat, key=server.api_key is not None)}\n")
    typer.echo(f"API: {reach}/docs   metrics: {reach}/metrics   Ctrl-C stops")


def _beyond_memory(config: EngineConfig) -> list[tuple[str, str]]:
    """Where cached prefixes are kept too, without what is secret."""
    from sixfold.cache.redis import place

    kept = []
    if config.kv_disk is not None:
        kept.append(f"{config.kv_disk} (at most {console.size(config.kv_disk_bytes)})")
    kept += [place(url) for url in (config.kv_redis, config.kv_s3) if url is not None]
    return [("KV beyond", ", ".join(kept))] if kept and config.prefix_cache else []


def curl(url: str, name: str, *, chat: bool, key: bool) -> str:
    """A command to paste into a shell, which streams an answer."""
    body: dict[str, Any] = {"model": name, "stream": True, "max_tokens": 100}
    if chat:
        path, body = "chat/completions", body | {"messages": [{"role": "user", "content": "Why is the sky blue?"}]}
    else:
        path, body = "completions", body | {"prompt": "The sky is blue because"}
    lines = [f"curl -N {url}/v1/{path}", "  -H 'Content-Type: application/json'"]
    if key:
        lines.append('  -H "Authorization: Bearer $SIXFOLD_API_KEY"')
    lines.append(f"  -d {shlex.quote(json.dumps(body, ensure_ascii=False))}")
    return " \\\n".join(lines)
