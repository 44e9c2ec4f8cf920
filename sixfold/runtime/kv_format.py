"""How keys and values are kept: the formats of KV memory, for a run and for single layers, and their sizes.

Owns: names, the spelling of a choice, bytes. Must not know: the layout inside a page (csrc/kv_page.hpp has it).

    f16                  float16: 2 bytes a value
    int8                 8 bits and a float16 scale for every key and value of a head
    int4                 4 bits and the same scale; float16 as well for the first and the newest tokens of a sequence
    int8,0=f16,28-29=f16 the same, but layers 0, 28 and 29 in float16
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sixfold.errors import ConfigError
from sixfold.runtime.batch import PAGE_SIZE

BITS = {"f16": 16, "int8": 8, "int4": 4}
FORMATS = tuple(BITS)
BLOCK_TOKENS = 64  # with an int4 layer, a sequence begins with known tokens only at multiples of this,
FIRST_TOKENS = 16  # and runs its first ones itself
INT4_BLOCK = 32  # elements of an int4 value that lie together (csrc/kv_page.hpp)
EXACT = "f16"  # what the engine compares everything with; the others are approximations

_EXCEPTION = re.compile(r"(\d+)(?:-(\d+))?=(\w+)")


def layer_formats(choice: str, layers: int) -> tuple[str, ...]:
    """The format of each layer. Raises ConfigError."""
    first, *exceptions = (part.strip() for part in choice.split(","))
    formats = [_known(first, choice)] * layers
    for part in exceptions:
        match = _EXCEPTION.fullmatch(part)
        if match is None:
            raise _wrong(choice, f"{part!r} is no exception for layers")
        low, high = int(match[1]), int(match[2] or match[1])
        if not low <= high < layers:
            raise _wrong(choice, f"the model has the layers 0 to {layers - 1}")
        formats[low : high + 1] = [_known(match[3], choice)] * (high - low + 1)
    return tuple(formats)


def usable(head_size: int) -> tuple[str, ...]:
    """The formats that heads of this size can be kept in."""
    return FORMATS if head_size % INT4_BLOCK == 0 else tuple(name for name in FORMATS if name != "int4")


def check_usable(formats: Sequence[str], head_size: int) -> None:
    """Raises ConfigError."""
    if not set(formats) <= set(usable(head_size)):
        raise ConfigError(
            "This model's keys and values can not be kept in int4",
            cause=f"its heads have {head_size} elements, which is no multiple of {INT4_BLOCK}",
            remedy=f"Use {' or '.join(usable(head_size))}", param="kv_format",
        )  # fmt: skip


def head_bytes(format: str, head_size: int) -> int:
    """Bytes of a page of one layer and KV head: 16 keys and values, and their scales."""
    return 2 * PAGE_SIZE * head_size * BITS[format] // 8 + scale_bytes(format)


def scale_bytes(format: str) -> int:
    """Those of them that hold scales."""
    return 0 if format == "f16" else 2 * 2 * PAGE_SIZE


def scale_share(sizes: Mapping[str, Any], choice: str) -> float:
    """The part of a page that is scales."""
    formats = layer_formats(choice, int(sizes["layers"]))
    return int(sizes["kv_heads"]) * sum(map(scale_bytes, formats)) / page_bytes(sizes, choice)


def exact_bytes(sizes: Mapping[str, Any], choice: str, *, sequences: int, step_tokens: int) -> int:
    """Bytes for the tokens that int4 layers keep in float16 as well (csrc/kv_exact.hpp), beside the pages.

    Each of so many ``sequences`` has its first page and its newest block, and a step those that it runs.
    """
    heads = layer_formats(choice, int(sizes["layers"])).count("int4") * int(sizes["kv_heads"])
    page = heads * head_bytes(EXACT, int(sizes["head_size"]))
    return page * (sequences * (1 + BLOCK_TOKENS // PAGE_SIZE + 1) + -(-step_tokens // PAGE_SIZE))


def page_bytes(sizes: Mapping[str, Any], choice: str) -> int:
    """Bytes of a KV page, all layers. ``sizes``: layers, kv_heads and head_size of the model."""
    formats = layer_formats(choice, int(sizes["layers"]))
    return int(sizes["kv_heads"]) * sum(head_bytes(format, int(sizes["head_size"])) for format in formats)


def _known(name: str, choice: str) -> str:
    if name not in FORMATS:
        raise _wrong(choice, f"{name!r} is no KV format")
    return name


def _wrong(choice: str, cause: str) -> ConfigError:
    return ConfigError(
        f"kv_format={choice!r} can not be used",
        cause=cause,
        remedy=f"Use {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, for single layers too, such as int8,0-1=f16",
        param="kv_format",
    )
