"""What a profile says: time a kind of operator, what it achieved, and how near that is to what the machine can do.

Owns: the arithmetic from totals to shares. Must not know: how they were measured, or how they are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sixfold.runtime.limits import Limits
from sixfold.runtime.profile import KindTotal


def bound(total: KindTotal, limits: Limits) -> tuple[float, str]:
    """(seconds, what bounds it): the least time this work can take here, by the slowest of its three demands."""
    demands = {
        "memory": (total.weight_bytes + total.kv_bytes) / limits.bandwidth,
        "int8 MACs": total.integer_macs / limits.best_integer,
        "float MACs": total.float_macs / limits.best_float,
    }
    name = max(demands, key=lambda demand: demands[demand])
    return demands[name], name


def describe(
    totals: Sequence[KindTotal], steps: int, rows: int, step_seconds: float, executor_seconds: float, limits: Limits
) -> dict[str, Any]:
    """The profile of ``steps`` steps as plain data; times in milliseconds a step, the slowest operator first.

    ``step_seconds`` are of whole engine steps, ``executor_seconds`` of the executor in them.
    """
    operators = [_operator(total, steps, step_seconds, limits) for total in totals if total.calls]
    operators.sort(key=lambda one: -one["ms_per_step"])
    inside = sum(total.seconds for total in totals)
    least = sum(bound(total, limits)[0] for total in totals)
    return {
        "steps": steps,
        "rows_per_step": rows / steps,
        "ms_per_step": 1000 * step_seconds / steps,
        "operators": operators,
        "between_operators_ms": 1000 * (executor_seconds - inside) / steps,
        "outside_executor_ms": 1000 * (step_seconds - executor_seconds) / steps,
        "outside_executor_share": (step_seconds - executor_seconds) / step_seconds,
        "share_of_limit": least / step_seconds,
    }


def _operator(total: KindTotal, steps: int, step_seconds: float, limits: Limits) -> dict[str, Any]:
    seconds = max(total.seconds, 1e-12)
    least, demand = bound(total, limits)
    return {
        "operator": total.kind,
        "calls_per_step": total.calls / steps,
        "ms_per_step": 1000 * total.seconds / steps,
        "share_of_step": total.seconds / step_seconds,
        "weights_gb_per_second": total.weight_bytes / seconds / 1e9,
        "kv_gb_per_second": total.kv_bytes / seconds / 1e9,
        "gmac_per_second": (total.integer_macs + total.float_macs) / seconds / 1e9,
        "share_of_limit": least / seconds if least else None,
        "bound": demand if least else None,
    }
