"""LoRA as a section of ``sixfold bench decode``: what adapters cost, and what different ones in one batch cost.

Owns: its table. Must not know: how anything is timed (``cli/adapter_cost.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sixfold.cli import console
from sixfold.cli.bench.output import percent

if TYPE_CHECKING:
    from sixfold.cli.bench.decode import Load
    from sixfold.cli.timing import Bench


def slots(batch: int) -> int:
    """What the engine must hold so that nothing is paged."""
    from sixfold.cli.adapter_cost import KINDS

    return batch * len(KINDS)


def measure(bench: Bench, work: Load) -> dict[str, Any]:
    from sixfold.cli.adapter_cost import measure

    with console.steps("LoRA adapters", work.repeats) as report:
        return measure(bench, work.prompt_tokens, work.batch, work.new_tokens, work.repeats, report)


def show(found: dict[str, Any]) -> None:
    console.table(
        f"LoRA, {found['batch']} requests, decode tokens/s, medians of {found['repeats']}; "
        f"without adapters {found['no_adapter_tokens_per_second']:.0f}",
        ("adapters", "MB each", "load ms", "one for all", "of none", "one each", "of one"),
        [
            (kind, f"{one['file_bytes'] / 1e6:.1f}", f"{one['load_ms']:.0f}", f"{one['one_tokens_per_second']:.0f}",
             percent(one["one_to_none"]), f"{one['own_tokens_per_second']:.0f}", percent(one["own_to_one"]))
            for kind, one in found["kinds"].items()
        ],
    )  # fmt: skip
