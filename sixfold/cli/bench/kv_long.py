"""``sixfold bench kv --section long``: KV memory of a long context, what a token costs in it, and whether it is found.

Owns: the measuring order and the table. Must not know: how the recall model is made (``bench/needle.py``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sixfold.cli import console

if TYPE_CHECKING:
    from sixfold.config import EngineConfig

SHORTER = (1024, 8192, 32768)  # contexts to compare the long one with


def measure_long(settings: EngineConfig, kv_format: str, context: int, repeats: int) -> dict[str, Any]:
    """Memory as predicted and as it is, decode steps by context, and recall with a model made for it."""
    from sixfold.bench.needle import recall

    contexts = [*(shorter for shorter in SHORTER if shorter < context), context]
    with console.steps(f"Steps, {kv_format}", repeats) as report:
        found = _steps(settings, kv_format, contexts, repeats, report)
    with tempfile.TemporaryDirectory() as directory, console.steps("Recall", context) as report:
        found["recall"] = recall(Path(directory), context, kv_format, settings.threads, 0, report)
    return found


def _steps(settings: EngineConfig, kv_format: str, contexts: list[int], repeats: int, report: Any) -> dict[str, Any]:
    import numpy as np

    from sixfold import store
    from sixfold.bench import growth
    from sixfold.bench.fit import fit
    from sixfold.cli.model_card import read_card
    from sixfold.compile import build
    from sixfold.runtime.native import NativeExecutor
    from sixfold.weights.model_file import open_model

    found = store.resolve(settings.model)
    with open_model(found.path) as file:
        plan = build(file, cache=settings.plan_cache)
    sizes = plan.meta["sizes"]
    before = _resident()
    executor = NativeExecutor(
        plan, num_pages=growth.pages_for((1, contexts[-1])), max_tokens=64, threads=settings.threads,
        isa=settings.isa, kv_format=kv_format, max_sequences=1,
        key_centres=np.zeros((sizes["layers"], sizes["kv_heads"], sizes["head_size"]), np.float32),  # cost the same
    )  # fmt: skip
    times = growth.measure(executor, [(1, context) for context in contexts], repeats, report)
    growing = fit([one.context / 1000 for one in times], [1000 * one.seconds for one in times])
    assert growing is not None
    return {
        "kv_format": kv_format,
        "context": contexts[-1],
        "predicted_bytes": read_card(found, kv_format).kv_bytes(1, contexts[-1]),
        "resident_bytes": _resident() - before,
        "steps": [{"context": one.context, "ms": 1000 * one.seconds} for one in times],
        "ms_per_1000_tokens": growing.slope,
        "largest_residual": growing.largest_residual,
    }


def _resident() -> int:
    """Bytes of this process that are in memory and of no file: KV and buffers, but not the mapped weights. Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("/proc/self/status has no RssAnon")


def print_long(found: dict[str, Any]) -> None:
    predicted, resident, recalled = found["predicted_bytes"], found["resident_bytes"], found["recall"]
    console.table(
        f"\nA context of {found['context']} tokens in {found['kv_format']}",
        ("context", "ms a token"),
        [(str(step["context"]), f"{step['ms']:.2f}") for step in found["steps"]],
        note=f"{found['ms_per_1000_tokens']:.3f} ms more for 1,000 tokens; the line is off by at most "
        f"{100 * found['largest_residual']:.0f}%.",
    )
    console.facts(
        "\nMemory and recall",
        [
            ("predicted", console.size(predicted)),
            ("in memory", f"{console.size(resident)} ({100 * (resident / predicted - 1):+.1f}%)"),
            ("recalled", f"{recalled['right']} of {recalled['asked']} planted values "
                         f"({recalled['fill_seconds']:.0f} s to fill)"),
        ],
    )  # fmt: skip
