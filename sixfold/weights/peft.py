"""A LoRA adapter as PEFT writes it: ``adapter_config.json`` and ``adapter_model.safetensors``.

Owns: the reading of both and the meaning of the configuration. Must not know: models, plans, or what runs an adapter.
Nothing here runs code from a file: pickled weights (``adapter_model.bin``) are refused.

    y = W x + scale * B (A x)      scale = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora (Kalajdzievski 2023)

A setting that would change this, and that we do not have, is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sixfold.errors import ModelFileError, UnsupportedModelError
from sixfold.weights.mapped_file import MappedFile
from sixfold.weights.safetensors import MAX_HEADER, read_safetensors
from sixfold.weights.tensor import Tensor, check_finite

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 512
PROJECTIONS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip

_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_MODULE = re.compile(r"(?:(?:model|language_model)\.)*(layers\.\d+\.(?:self_attn|mlp)\.\w+)")
_PLAIN = re.compile(r"[\w.\-]+")
_PATTERN_LENGTH, _PATTERN_REPEATS = 512, 2

# Settings that say where an adapter was put, or how it was trained: the tensors in the file say all of it that matters.
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "peft_version",
    "layers_pattern", "layers_to_transform", "exclude_modules", "parent_library", "runtime_config", "eva_config",
    "qalora_group_size", "megatron_core", "ensure_weight_tying", "lora_ga_config",
}  # fmt: skip
_READ = {
    "peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "bias", "init_lora_weights",
}  # fmt: skip
# Initialisations that take a part out of the base weights: with ours, which are whole, the result would be wrong.
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda")


@dataclass(frozen=True, eq=False)
class LowRank:
    """What is added to one matrix: ``scale * B @ A``."""

    a: Tensor  # [rank, inputs]
    b: Tensor  # [outputs, rank]
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, eq=False)
class AdapterFile:
    path: Path
    digest: str  # sha256 in hex over configuration and weights
    rank: int  # the largest
    parts: Mapping[str, LowRank] = field(repr=False)  # by module: layers.0.self_attn.q_proj


def read_adapter(path: Path) -> AdapterFile:
    """Reads and checks an adapter's directory. The tensors look into the file until they are dropped.

    Raises ModelFileError for what is missing, damaged or contradicts itself, UnsupportedModelError for adapters of a
    kind that can not be run.
    """
    content = _read(path / CONFIG)
    config = _parse(path / CONFIG, content)
    _check_kind(path, config)
    if not (path / WEIGHTS).is_file():
        pickled = (path / "adapter_model.bin").is_file()
        raise ModelFileError(
            f"{path} holds no {WEIGHTS}",
            cause="pickled weights are never loaded: they can run code" if pickled else "there are no weights to read",
            remedy="Save the adapter with safe_serialization=True",
        )
    file = MappedFile(path / WEIGHTS)
    tensors = read_safetensors(file)
    parts = _parts(path, config, _pairs(path, tensors))
    _check_targets(path, config, parts)
    digest = hashlib.sha256(hashlib.sha256(content).digest() + hashlib.sha256(file.bytes).digest()).hexdigest()
    return AdapterFile(path, digest, max(part.rank for part in parts.values()), parts)


def _read(path: Path) -> bytes:
    file = MappedFile(path)
    try:
        if file.size > MAX_HEADER:
            raise _broken(path, f"it has {file.size} bytes, more than any such file needs")
        return file.bytes[:]
    finally:
        file.close()


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        config = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its JSON cannot be read: {str(error)[:100]}") from None
    if not isinstance(config, dict):
        raise _broken(path, "its JSON is not an object")
    return config


def _check_kind(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses what is not plain LoRA."""
    if config.get("peft_type") != "LORA":
        raise _unsupported(path, f"its peft_type is {_clip(config.get('peft_type'))}", "Only LORA adapters can be run")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise _unsupported(path, f"its task_type is {_clip(config['task_type'])}", "Only CAUSAL_LM adapters can be run")
    if config.get("bias", "none") != "none":
        raise _unsupported(path, f"bias={_clip(config['bias'])}", 'Train it with bias="none"')
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise _unsupported(
            path, f"init_lora_weights={_clip(start)} changes the base model's weights",
            "Convert it to a plain adapter (path_initial_model_for_weight_conversion of save_pretrained)",
        )  # fmt: skip
    for name, value in config.items():
        if name not in _READ | _HARMLESS and value not in (None, False, [], {}, ""):
            raise _unsupported(path, f"it uses {_clip(name)}={_clip(value)}", f"Train it without {_clip(name)}")


def _pairs(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by module and factor."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key = _KEY.fullmatch(name)
        module = _MODULE.fullmatch(key[1]) if key else None
        if key is None or module is None or module[1].split(".", 2)[2] not in PROJECTIONS:
            raise _unsupported(
                path, f"it changes {_clip(name)}",
                "Adapters of the projections in attention and feed-forward can be run; train it without other modules",
            )  # fmt: skip
        if key[2] in pairs.setdefault(module[1], {}):
            raise _broken(path, f"it has two lora_{key[2]} for {module[1]}")
        pairs[module[1]][key[2]] = tensor
    if not pairs:
        raise _broken(path, "it holds no tensors")
    return pairs


def _parts(path: Path, config: Mapping[str, Any], pairs: Mapping[str, dict[str, Tensor]]) -> dict[str, LowRank]:
    ranks, alphas = _patterns(path, config, "rank_pattern"), _patterns(path, config, "alpha_pattern")
    r, alpha = config.get("r"), config.get("lora_alpha")
    if not _is_rank(r) or not _is_number(alpha):
        raise _broken(path, f"r={_clip(r)} and lora_alpha={_clip(alpha)} are no rank up to {MAX_RANK} and number")
    rslora = config.get("use_rslora", False)
    if not isinstance(rslora, bool):
        raise _broken(path, f"use_rslora={_clip(rslora)} is neither true nor false")
    parts = {}
    for module, factors in pairs.items():
        if factors.keys() != {"A", "B"}:
            raise _broken(path, f"{module} has no lora_{'B' if 'A' in factors else 'A'}")
        a, b = factors["A"], factors["B"]
        rank = _matching(ranks, module, r)
        if not _is_rank(rank) or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise _broken(path, f"{module} has A {a.shape} and B {b.shape}, which is not of rank {_clip(rank)}")
        own_alpha = _matching(alphas, module, alpha)
        if not _is_number(own_alpha):
            raise _broken(path, f"the alpha {_clip(own_alpha)} of {module} is no number")
        check_finite(a)
        check_finite(b)
        parts[module] = LowRank(a, b, float(own_alpha) / (math.sqrt(rank) if rslora else rank))
    return parts


def _patterns(path: Path, config: Mapping[str, Any], name: str) -> list[tuple[re.Pattern[str], Any]]:
    """Regular expressions as PEFT reads them; refused where matching could take for ever."""
    given = config.get(name) or {}
    if not isinstance(given, dict):
        raise _broken(path, f"{name} is not an object")
    found = []
    for key, value in given.items():
        if not _quick(key):
            raise _unsupported(path, f"{name} has the pattern {_clip(key)}", "Name modules, or use a simpler pattern")
        try:
            found.append((re.compile(rf"(?:.*\.)?(?:{key})"), value))
        except (re.error, RecursionError, OverflowError) as error:
            raise _broken(path, f"{name} has the pattern {_clip(key)}: {error}") from None
    return found


def _quick(pattern: str) -> bool:
    """Whether matching a module's name takes no time worth speaking of: few repeats, none of a group."""
    if _PLAIN.fullmatch(pattern):
        return len(pattern) <= _PATTERN_LENGTH
    repeats = len(re.findall(r"[*+{?]", pattern.replace("(?:", "(")))
    return (
        len(pattern) <= _PATTERN_LENGTH and repeats <= _PATTERN_REPEATS and re.search(r"\)[*+{]|\\\d", pattern) is None
    )


def _matching(patterns: list[tuple[re.Pattern[str], Any]], module: str, otherwise: Any) -> Any:
    for pattern, value in patterns:
        if any(pattern.fullmatch(name) for name in (module, f"model.{module}")):
            return value
    return otherwise


def _check_targets(path: Path, config: Mapping[str, Any], parts: Mapping[str, LowRank]) -> None:
    """Holds a list of target modules against the tensors. A pattern or ``all-linear`` names nothing to hold."""
    targets = config.get("target_modules")
    if targets is None or isinstance(targets, str):
        return
    if not isinstance(targets, list) or not all(isinstance(target, str) and target for target in targets):
        raise _broken(path, "target_modules is neither a list of names nor a pattern")

    def hits(target: str, module: str) -> bool:
        full = f".model.{module}"
        return full.endswith(f".{target}")

    for target in targets:
        if not any(hits(target, module) for module in parts):
            raise _broken(path, f"target_modules names {_clip(target)}, for which the file has no tensors")
    for module in parts:
        if not any(hits(target, module) for target in targets):
            raise _broken(path, f"the file has tensors for {module}, which target_modules does not name")


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9  # also false for what is not finite


def _clip(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:90]}..."


def _broken(path: Path, cause: str) -> ModelFileError:
    return ModelFileError(f"The adapter {path} is not sound", cause=cause, remedy="Save or download it again")


def _unsupported(path: Path, cause: str, remedy: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"The adapter {path} can not be run", cause=cause, remedy=remedy)
