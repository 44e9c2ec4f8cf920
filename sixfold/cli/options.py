"""The options that several commands share, and how their words become values.

Owns: names, help texts and parsers. Must not know: the commands.
"""

from __future__ import annotations

import re
from typing import Annotated

import typer

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)


def byte_count(text: str | int) -> int:
    """``512M``, ``1.5G``, ``2GiB`` or plain bytes; the units are powers of 1024."""
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size; write 512M, 1.5G or a number of bytes")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


def numbers(text: str) -> list[int]:
    """``32,256``: whole numbers of at least 1."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is no list of positive numbers; write 32,256")
    return [int(part) for part in parts]


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
Threads = Annotated[int | None, typer.Option(help="Worker threads; default: the cores this process may use.")]
Isa = Annotated[str | None, typer.Option(metavar="ISA", help="Instruction set: auto, scalar or avx2.")]
Template = Annotated[
    str | None, typer.Option(metavar="FILE", help="A jinja chat template in place of the model's own.")
]
AcceptLicense = Annotated[
    bool, typer.Option("--accept-license", help="Accept the model's licence without being asked.")
]
Pull = Annotated[bool, typer.Option("--pull/--no-pull", help="Download the model if it is not here.")]
