"""Every setting of Sixfold, parsed once into frozen values.

Precedence: flag > environment > file > default. This module is the only reader of ``os.environ``.
The file is TOML: ``./sixfold.toml``, or ``$SIXFOLD_HOME/config.toml`` when the first is absent, with the tables
``[engine]`` and ``[server]`` and the field names below. The environment uses ``SIXFOLD_`` and the upper-case name.
"""

from __future__ import annotations

import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sixfold.errors import ConfigError

T = TypeVar("T")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
# Settings in bytes, by their ending in either spelling: they may be written 512M.
_SIZES = ("kv_memory", "KV_MEMORY", "_bytes", "_BYTES")


def home() -> Path:
    """Where models and plans are kept: ``$SIXFOLD_HOME``, ``$XDG_CACHE_HOME/sixfold`` or ``~/.cache/sixfold``."""
    if value := os.environ.get("SIXFOLD_HOME"):
        return Path(value).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "sixfold"


def package_index() -> str | None:
    """The simple index or ``file:`` URL of wheels in ``$SIXFOLD_INDEX_URL``. None: what pip is configured with."""
    return os.environ.get("SIXFOLD_INDEX_URL", "").rstrip("/") or None


def index_without_pip() -> str | None:
    """The simple index that pip would be told by the environment, for an interpreter without pip."""
    return os.environ.get("PIP_INDEX_URL", "").rstrip("/") or None


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a child process: this one's with ``changes``."""
    return {**os.environ, **changes}


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a model is loaded and run. Sizes in bytes unless said otherwise."""

    model: str = "smollm2"
    max_model_len: int | None = None  # tokens; None: what the model was trained for
    kv_memory: int | None = None  # bytes; None: a quarter of the free memory, at most what max_num_seqs can use
    max_num_seqs: int = 64  # sequences in one step
    max_num_batched_tokens: int = 512  # tokens in one step: the chunk of a chunked prefill
    max_queue: int = 1024  # requests waiting; one more is refused
    threads: int | None = None  # None: the cores this process may use
    kv_format: str = "f16"  # f16, int8; for single layers too: int8,0-1=f16
    isa: str = "auto"  # auto, scalar, avx2, avx512, avx512bf16
    seed: int = 0  # base of the seeds drawn for requests that bring none
    plan_cache: bool = True
    kv_disk: str | None = None  # a directory that keeps cached prefixes when memory is short and over restarts
    kv_disk_bytes: int = 10 << 30
    kv_redis: str | None = field(default=None, repr=False)  # the same, shared by servers; a secret
    kv_s3: str | None = None  # s3://bucket/prefix: the same
    reuse_context: str = "off"  # of text known from elsewhere, an approximation: off, on, or the share computed again
    lora: Mapping[str, str] = field(default_factory=dict)  # LoRA adapters, name to directory; in text: a=path,b=path
    max_loras: int = 8  # adapters in memory, and in one step; others are read when they are asked for
    speculation: str = "off"  # who drafts tokens, so that a step may yield several: off, prompt-lookup
    prefix_cache: bool = True  # requests begin with the KV pages of those that began with the same tokens

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_queue", "kv_disk_bytes", "max_loras"):
            _positive(self, name)
        for name in ("max_model_len", "kv_memory", "threads"):
            if getattr(self, name) is not None:
                _positive(self, name)
        if self.isa not in ("auto", "scalar", "avx2", "avx512", "avx512bf16"):
            raise ConfigError(
                f"isa={self.isa!r} is unknown", remedy="Use auto, scalar, avx2, avx512 or avx512bf16", param="isa"
            )
        if self.speculation not in ("off", "prompt-lookup"):
            raise ConfigError(
                f"speculation={self.speculation!r} is unknown", remedy="Use off or prompt-lookup", param="speculation"
            )
        if self.reuse and not self.prefix_cache:
            raise ConfigError(
                "reuse_context needs the prefix cache", cause="what is reused is found there",
                remedy="Set prefix_cache to true or reuse_context to off", param="reuse_context",
            )  # fmt: skip

    @property
    def reuse(self) -> bool | dict[str, float]:
        """``reuse_context`` as a request would say it. Raises ConfigError."""
        if self.reuse_context in ("on", "off"):
            return self.reuse_context == "on"
        try:
            share = float(self.reuse_context)
        except ValueError:
            share = -1.0
        if not 0.0 <= share <= 1.0:
            raise ConfigError(
                f"reuse_context={self.reuse_context!r} can not be used", param="reuse_context",
                remedy="Use on, off, or the share of tokens that is computed again, 0 to 1",
            )  # fmt: skip
        return {"recompute": share}


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How the HTTP server listens and what it refuses."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    served_model_name: str | None = None  # None: the name the model was loaded by
    chat_template: str | None = None  # a jinja file that replaces the model's template
    max_body_bytes: int = 8 << 20
    max_header_bytes: int = 64 << 10
    max_n: int = 32
    max_logprobs: int = 20
    max_stop: int = 16
    max_prompts: int = 256  # prompts in one /v1/completions request
    lora_root: str | None = None  # where adapters may be loaded from over HTTP; None: from nowhere
    drain_seconds: float = 30.0  # how long SIGTERM lets running requests finish

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_header_bytes", "max_n", "max_logprobs", "max_stop", "max_prompts"):
            _positive(self, name)
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port} is out of range", remedy="Use 0 (any free) to 65535", param="port")
        if self.drain_seconds < 0:
            raise ConfigError("drain_seconds is negative", remedy="Use 0 or more seconds", param="drain_seconds")
        if self.api_key == "":
            raise ConfigError(
                "api_key is empty", cause="an empty key would lock everybody out", remedy="Set a key or leave it out",
                param="api_key",
            )  # fmt: skip


def load(kind: type[T], table: str, flags: Mapping[str, Any]) -> T:
    """Builds ``kind`` (EngineConfig, ServerConfig) from flags, environment and file. A flag of None was not given.

    Raises :class:`ConfigError` for an unknown key in the file and for a value of the wrong type or range.
    """
    known = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in _file_table(table).items():
        if name not in known:
            raise ConfigError(
                f"The configuration file has an unknown key [{table}] {name}", remedy=f"Known keys: {', '.join(known)}"
            )
        values[name] = _coerce(known[name], value, f"[{table}] {name}")
    for name in known:
        if (text := os.environ.get(f"SIXFOLD_{name.upper()}")) is not None:
            values[name] = _coerce(known[name], text, f"SIXFOLD_{name.upper()}")
    for name, value in flags.items():
        if value is not None:
            values[name] = value
    return kind(**values)


def _positive(config: Any, name: str) -> None:
    if getattr(config, name) < 1:
        raise ConfigError(f"{name}={getattr(config, name)} is out of range", remedy="Use at least 1", param=name)


def _file_table(table: str) -> dict[str, Any]:
    for path in (Path("sixfold.toml"), home() / "config.toml"):
        if not path.is_file():
            continue
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML", cause=str(error), remedy="Correct or remove it") from None
        section = data.get(table, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: [{table}] is not a table", remedy=f"Write it as [{table}] and keys below it")
        return section
    return {}


def byte_count(text: str | int) -> int:
    """``512M``, ``1.5G``, ``2GiB`` or plain bytes; the units are powers of 1024. Raises ValueError."""
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is no size; write 512M, 1.5G or a number of bytes")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


def name_paths(texts: Iterable[str]) -> dict[str, str]:
    """``name=path`` each. Raises ValueError."""
    found = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path) or name in found:
            raise ValueError(f"{text!r} is not name=path with a name of its own")
        found[name] = path
    return found


def _coerce(annotation: Any, value: Any, where: str) -> Any:
    wanted = annotation
    if isinstance(annotation, types.UnionType):
        wanted = next(arm for arm in typing.get_args(annotation) if arm is not type(None))
    try:
        if wanted is bool and isinstance(value, str):
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[value.lower()]
        if wanted is int and isinstance(value, str):
            return byte_count(value) if where.endswith(_SIZES) else int(value)
        if typing.get_origin(wanted) is Mapping:
            return name_paths(value.split(",") if isinstance(value, str) else [f"{k}={v}" for k, v in value.items()])
        if wanted is float and (isinstance(value, str) or type(value) in (int, float)):
            return float(value)
        if isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
            return value
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    kind = getattr(wanted, "__name__", str(wanted))
    raise ConfigError(f"{where}={value!r} is not of type {kind}", remedy="Correct the value")
