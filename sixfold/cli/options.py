"""The options that several commands share, and how their words become values.

Owns: names, help texts and parsers. Must not know: the commands.
"""

from __future__ import annotations

from typing import Annotated

import typer

from sixfold import config


def byte_count(text: str | int) -> int:
    """A size as :func:`sixfold.config.byte_count` reads it."""
    try:
        return config.byte_count(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def numbers(text: str) -> list[int]:
    """``32,256``: whole numbers of at least 1."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is no list of positive numbers; write 32,256")
    return [int(part) for part in parts]


def adapters(texts: list[str] | None) -> dict[str, str] | None:
    """``name=path`` each; None when there are none."""
    try:
        return config.name_paths(texts) if texts else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--lora") from None


def url_without_password(text: str) -> str:
    """Everybody on a machine can read the command lines of its processes."""
    from sixfold.cache.redis import has_password

    if has_password(text):
        raise typer.BadParameter("a password has no place on a command line; set SIXFOLD_KV_REDIS to the URL")
    return text


Model = Annotated[str, typer.Argument(help="A short name (see `sixfold list`), a path, or hf:org/repo[:file].")]
OptionalModel = Annotated[
    str | None,
    typer.Argument(help="A short name (see `sixfold list`), a path, or hf:org/repo[:file].  [default: smollm2]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
MaxModelLen = Annotated[int | None, typer.Option(help="Context in tokens; default: what the model was trained for.")]
KVMemory = Annotated[
    int | None,
    typer.Option(parser=byte_count, metavar="SIZE", help="KV memory (512M, 2G); default: a quarter of what is free."),
]
KVFormat = Annotated[
    str | None,
    typer.Option(metavar="FORMAT", help="How keys and values are kept: f16, int8; int8,0-1=f16 for single layers."),
]
KVDisk = Annotated[
    str | None,
    typer.Option(
        metavar="DIR", help="Keep cached prefixes in this directory too: when memory is short, over restarts."
    ),
]
KVDiskSize = Annotated[
    int | None, typer.Option(parser=byte_count, metavar="SIZE", help="At most so much of it.  [default: 10G]")
]
KVRedis = Annotated[
    str | None,
    typer.Option(
        parser=url_without_password, metavar="URL",
        help="Share cached prefixes through this Redis: redis://host:6379/0; with a password in SIXFOLD_KV_REDIS.",
    ),
]  # fmt: skip
KVS3 = Annotated[
    str | None, typer.Option(metavar="URL", help="Share cached prefixes through this bucket: s3://bucket/prefix.")
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=DIR", help="A LoRA adapter in PEFT's format, served as a model of its name; repeatable."
    ),
]
MaxLoras = Annotated[
    int | None, typer.Option(help="Adapters in memory; others are read when they are asked for.  [default: 8]")
]
Threads = Annotated[int | None, typer.Option(help="Worker threads; default: the cores this process may use.")]
Isa = Annotated[
    str | None, typer.Option(metavar="ISA", help="Instruction set: auto, scalar, avx2, avx512 or avx512bf16.")
]
Template = Annotated[
    str | None, typer.Option(metavar="FILE", help="A jinja chat template in place of the model's own.")
]
AcceptLicense = Annotated[
    bool, typer.Option("--accept-license", help="Accept the model's licence without being asked.")
]
Pull = Annotated[bool, typer.Option("--pull/--no-pull", help="Download the model if it is not here.")]
ReuseContext = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="Reuse text known from elsewhere, an approximation: off, on, or the share computed again.  [default: off]",
    ),
]
Speculate = Annotated[
    str | None,
    typer.Option("--speculate", metavar="DRAFTER", help="Draft tokens, exactly: off, prompt-lookup.  [default: off]"),
]
PrefixCache = Annotated[
    bool | None,
    typer.Option(
        "--prefix-cache/--no-prefix-cache", show_default=False,
        help="Begin with what is known of the prompt.  [default: on]",
    ),
]  # fmt: skip
