"""``sixfold run``: one prompt, one answer.

Owns: its options and where the prompt comes from. Must not know: how an answer is made.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from sixfold.cli import console
from sixfold.cli.options import (
    AcceptLicense,
    Isa,
    KVFormat,
    KVMemory,
    MaxModelLen,
    Model,
    PrefixCache,
    Template,
    Threads,
)
from sixfold.errors import InvalidRequestError

RAW_TOKENS = 256  # a base model rarely ends by itself


def run(
    model: Model,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - or nothing: read from standard input.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Go on with the text as it is: no chat template.")] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help=f"Tokens at most; default: to the end ({RAW_TOKENS} with --raw).")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens of this total probability.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    chat_template: Template = None,
    max_model_len: MaxModelLen = None,
    kv_memory: KVMemory = None,
    kv_format: KVFormat = None,
    prefix_cache: PrefixCache = None,
    threads: Threads = None,
    isa: Isa = None,
    accept_license: AcceptLicense = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end instead of text.")] = False,
) -> None:
    """Answer one prompt and print the answer as it comes."""
    if raw and (system is not None or chat_template is not None):
        raise typer.BadParameter("--raw uses no chat template, so it takes neither --system nor --chat-template")
    text = _prompt(prompt)

    from sixfold import config
    from sixfold.cli.answer import Answer
    from sixfold.cli.backend import LocalBackend
    from sixfold.cli.fetch import fetch
    from sixfold.types import SamplingParams

    settings: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed, "stop": tuple(stop or ())}
    SamplingParams(**settings)  # refuses what is out of range before the model is loaded
    flags = {
        "model": model, "max_model_len": max_model_len, "kv_memory": kv_memory, "kv_format": kv_format,
            "prefix_cache": prefix_cache, "threads": threads, "isa": isa,
    }  # fmt: skip
    engine = config.load(config.EngineConfig, "engine", {"max_num_seqs": 1, **flags})
    fetch(model, accept_license=accept_license)
    with console.busy(f"Loading {model}"):
        backend = LocalBackend(engine, chat_template)
    raw = raw or _without_template(backend, system)
    settings["max_tokens"] = max_tokens or (RAW_TOKENS if raw else None)
    answer = Answer(lambda piece: None if json else console.write(piece))
    try:
        if raw:
            backend.complete(text, settings, answer)
        else:
            system_message = [] if system is None else [{"role": "system", "content": system}]
            backend.chat([*system_message, {"role": "user", "content": text}], settings, answer)
    finally:
        backend.close()
    if json:
        console.print_json({"model": model, **answer.describe()})
    elif not answer.text.endswith("\n"):
        console.write("\n")


def _prompt(argument: str | None) -> str:
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise typer.BadParameter("give a prompt, or pipe one in", param_hint="PROMPT")
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"The prompt on standard input is not UTF-8 at byte {error.start}", remedy="Convert it to UTF-8"
        ) from None


def _without_template(backend: Any, system: str | None) -> bool:
    """A base model goes on with the text as with --raw, and we say so."""
    if backend.chats or system is not None:
        return False
    typer.secho(f"({backend.name} is a base model: going on with the text, as with --raw)", dim=True, err=True)
    return True
