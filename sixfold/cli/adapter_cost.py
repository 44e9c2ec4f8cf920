"""Times requests with LoRA adapters: none, all on one, each on its own.

Owns: the adapters that are made up for it, the load and the numbers. Must not know: options, tables.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sixfold.cli.timing import Bench, Report
from sixfold.weights.peft import CONFIG, PROJECTIONS, WEIGHTS

KINDS = ((8, "float16"), (16, "float16"), (8, "float32"), (16, "float32"))  # rank and type of the file


def measure(bench: Bench, length: int, batch: int, new_tokens: int, repeats: int, report: Report) -> dict[str, Any]:
    """Decode rates in tokens a second, medians over ``repeats`` rounds of all cases one after the other.

    The adapters are random and change every projection of every layer. A rate is that of a run's median step, which a
    busy neighbour moves less than the whole run; ``_over_runs`` is over whole runs. Ratios are medians of each round's.
    """
    bench.check(length + new_tokens)
    kinds = [f"rank {rank} {dtype}" for rank, dtype in KINDS]
    loaded = _load(bench, batch)
    cases: dict[str, list[str | None]] = {"no adapter": [None] * batch}
    for kind in kinds:
        cases[f"{kind}, one"] = [f"{kind} 0"] * batch
        cases[f"{kind}, each its own"] = [f"{kind} {i}" for i in range(batch)]
    rates: dict[str, list[float]] = {name: [] for name in cases}
    runs: dict[str, list[float]] = {name: [] for name in cases}
    for index in range(repeats + 1):  # the first one warms up
        draw = random.Random(index)
        prompts = [bench.tokens(length, draw) for _ in range(batch)]
        for name, loras in cases.items():
            rate, run = bench.decode_rate(prompts, new_tokens, loras)
            if index:
                rates[name].append(rate)
                runs[name].append(run)
        report(index)
    plain = rates["no adapter"]
    return {
        "batch": batch,
        "prompt_tokens": length,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "no_adapter_tokens_per_second": statistics.median(plain),
        "kinds": {
            kind: loaded[kind]
            | _compared(plain, rates[f"{kind}, one"], rates[f"{kind}, each its own"])
            | {"own_to_one_over_runs": _ratio(runs[f"{kind}, each its own"], runs[f"{kind}, one"])}
            for kind in kinds
        },
        "rounds": rates,
        "rounds_over_runs": runs,
    }


def _compared(plain: list[float], one: list[float], own: list[float]) -> dict[str, float]:
    return {
        "one_tokens_per_second": statistics.median(one),
        "own_tokens_per_second": statistics.median(own),
        "one_to_none": _ratio(one, plain),
        "own_to_one": _ratio(own, one),
    }


def _ratio(these: list[float], those: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def _load(bench: Bench, count: int) -> dict[str, dict[str, float]]:
    """``count`` adapters of each kind, from a directory that is gone afterwards: they all stay in memory."""
    loaded = {}
    for rank, dtype in KINDS:
        kind = f"rank {rank} {dtype}"
        with tempfile.TemporaryDirectory() as folder:
            times = []
            for index in range(count):
                path = Path(folder) / str(index)
                write_random_adapter(path, bench.sizes, rank, dtype, seed=index)
                times.append(bench.load_lora(f"{kind} {index}", path))
            size = (path / WEIGHTS).stat().st_size
        loaded[kind] = {"file_bytes": float(size), "load_ms": 1000 * statistics.median(times)}
    return loaded


def write_random_adapter(folder: Path, sizes: Mapping[str, int], rank: int, dtype: str, seed: int) -> None:
    """An adapter in PEFT's format that changes all projections a little."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    hidden, inner = sizes["hidden"], sizes["intermediate"]
    q, kv = (sizes[heads] * sizes["head_size"] for heads in ("query_heads", "kv_heads"))
    shapes = dict(
        zip(PROJECTIONS, ((q, hidden), (kv, hidden), (kv, hidden), (hidden, q), (inner, hidden), (inner, hidden),
                          (hidden, inner)), strict=True)
    )  # fmt: skip
    tensors = {}
    for layer in range(sizes["layers"]):
        for name, (outputs, inputs) in shapes.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            a = rng.standard_normal((rank, inputs), np.float32) / np.float32(math.sqrt(inputs))
            b = rng.standard_normal((outputs, rank), np.float32) * np.float32(0.02)
            tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = a.astype(dtype), b.astype(dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none",
              "target_modules": "all-linear"}  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(config))
