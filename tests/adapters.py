"""LoRA adapters as PEFT writes them, made of seeded numbers; and what they change, merged into a model's tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sixfold.weights.peft import PROJECTIONS
from tests.tiny_kinds import KINDS
from tests.tiny_models import normal

ALL = tuple(name.split(".")[1] for name in PROJECTIONS)


def shapes(kind: str) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of a tiny model's projections."""
    tiny = KINDS[kind]
    hidden, q, kv = tiny.hidden, tiny.heads * tiny.head_dim, tiny.kv_heads * tiny.head_dim
    return {
        "q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q),
        "gate_proj": (tiny.intermediate, hidden), "up_proj": (tiny.intermediate, hidden),
        "down_proj": (hidden, tiny.intermediate),
    }  # fmt: skip


def module(layer: int, name: str) -> str:
    part = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
    return f"model.layers.{layer}.{part}.{name}"


def write_adapter(
    folder: Path,
    sizes: Mapping[str, tuple[int, int]],
    layers: Iterable[int],
    *,
    seed: int = 0,
    rank: int = 8,
    names: Iterable[str] = ALL,
    dtype: Any = np.float32,
    strength: float = 1.0,
    prefix: str = "base_model.model.",
    **config: Any,
) -> Path:
    """Random factors; ``rank_pattern`` by plain name is obeyed. ``config`` goes into adapter_config.json."""
    names = list(names)
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none",
        "target_modules": names, "lora_dropout": 0.05, "base_model_name_or_path": "tiny", "inference_mode": True,
        "use_dora": False, "modules_to_save": None, **config,
    }  # fmt: skip
    tensors = {}
    for layer in layers:
        for name in names:
            outputs, inputs = sizes[name]
            r = settings.get("rank_pattern", {}).get(name, rank)
            key = module(layer, name)
            a = normal(seed, f"{key}.A", (r, inputs)) / math.sqrt(inputs)
            b = normal(seed, f"{key}.B", (outputs, r)) * (0.3 * strength / math.sqrt(r))
            tensors[f"{prefix}{key}.lora_A.weight"] = a.astype(dtype)
            tensors[f"{prefix}{key}.lora_B.weight"] = b.astype(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def tiny_adapter(folder: Path, kind: str, **options: Any) -> Path:
    """An adapter for a tiny model, on all its layers and projections unless said otherwise."""
    return write_adapter(folder, shapes(kind), range(KINDS[kind].layers), **options)
