"""The short names: what ``registry.toml`` says, as types.

Owns: the registry file and its types. Must not know: the network, or what is on disk.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("registry.toml")


@dataclass(frozen=True)
class License:
    """A model's licence. With ``accept`` it has to be accepted before anything is downloaded."""

    id: str
    title: str
    url: str
    accept: bool = False
    notice: str = ""


@dataclass(frozen=True)
class Wheel:
    """One wheel of a model. ``member`` is its part of the model file (None: it brings only the texts in ``keep``)."""

    project: str
    file: str
    size: int
    sha256: str
    member: str | None = None
    member_size: int = 0
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One short name: the model file, its digest, its licence, and the wheels that it is assembled from."""

    name: str
    title: str
    chat: bool
    file: str
    size: int
    sha256: str
    license: License
    wheels: tuple[Wheel, ...]


def entries() -> Mapping[str, Entry]:
    """Every short name with what it stands for, in the order of the file."""
    return _load(FILE)


@cache
def _load(path: Path) -> Mapping[str, Entry]:
    with path.open("rb") as file:
        return {name: _entry(name, table) for name, table in tomllib.load(file).items()}


def _entry(name: str, table: dict[str, Any]) -> Entry:
    wheels = tuple(Wheel(**{**wheel, "keep": tuple(wheel.get("keep", ()))}) for wheel in table["wheels"])
    # our own file: a part that does not add up is our bug, not the user's
    assert sum(wheel.member_size for wheel in wheels) == table["size"], name
    return Entry(**{**table, "name": name, "license": License(**table["license"]), "wheels": wheels})
