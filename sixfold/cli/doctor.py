"""``sixfold doctor``: what this machine has, and which models fit.

Owns: the words and the estimate of speed. Must not know: how things are measured.
"""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sixfold.cli import console
from sixfold.cli.options import Json
from sixfold.errors import SixfoldError

if TYPE_CHECKING:
    from sixfold.cli.machine import Bandwidth

CONTEXT = 4096  # tokens of KV that a model is judged with
BITS = 5.0  # a weight at 4 bits with its scale and minimum: blocks of 32 with two float16


@dataclass(frozen=True)
class Candidate:
    """A model whose fit is judged. Bytes."""

    name: str
    weights: int
    per_token: int  # weights read to make one token
    kv: int  # for CONTEXT tokens

    @classmethod
    def typical(cls, name: str, billions: float, layers: int, kv_heads: int, head_size: int) -> Candidate:
        weights = int(billions * 1e9 * BITS / 8)
        return cls(name, weights, weights, CONTEXT * 2 * 2 * layers * kv_heads * head_size)


# Sizes and shapes of the Qwen2.5 family, whose small models are what people run on processors.
TYPICAL = (
    Candidate.typical("0.5B at 4 bits", 0.494, 24, 2, 64),
    Candidate.typical("1.5B at 4 bits", 1.54, 28, 2, 128),
    Candidate.typical("3B at 4 bits", 3.09, 36, 2, 128),
    Candidate.typical("7B at 4 bits", 7.62, 28, 4, 128),
)


def doctor(json: Json = False) -> None:
    """Say what this machine has and which models fit."""
    from sixfold import config
    from sixfold.cli import machine

    cpu = machine.processor()
    total, free = machine.memory()
    home = config.home()
    with console.busy("Measuring how fast memory is read"):
        measured = machine.bandwidths(tuple(dict.fromkeys((1, cpu.cores))), cpu.l3_bytes, free)
    best = max(measured, key=lambda one: one.bytes_per_second)
    found = {
        "processor": dataclasses.asdict(cpu),
        "memory": {"total": total, "free": free},
        "bandwidth": {
            "method": "largest byte of a buffer of at least 4 x L3 and 256 MiB by numpy, best of 5 rounds",
            "measured": [dataclasses.asdict(one) for one in measured],
        },
        "python": platform.python_version(),
        "compiler": machine.compiler(),
        "system": platform.platform(),
        "store": {"home": str(home), "disk_free": machine.disk_free(home)},
        "power_counters": machine.power_counters(),
        "models": [judged(one, free, best.bytes_per_second) for one in (*_known(), *TYPICAL)],
    }
    if json:
        console.print_json(found)
    else:
        _print(found, measured)


def judged(candidate: Candidate, free: int, bandwidth: float) -> dict[str, Any]:
    """Whether it fits into memory, and the tokens a second that reading its weights allows at most."""
    needed = candidate.weights + candidate.kv
    return {
        "model": candidate.name,
        "weights": candidate.weights,
        "kv": candidate.kv,
        "context": CONTEXT,
        "fits": needed <= free,
        "tokens_per_second_upper_bound": round(bandwidth / candidate.per_token, 1),
    }


def _known() -> list[Candidate]:
    """The short names and the models that were pulled; those that are here by what their files say."""
    from sixfold import store
    from sixfold.cli.model_card import read_card

    here = {model.name: model for model in store.list_models()}
    known = []
    for name, model in here.items():
        try:
            card = read_card(model)
        except SixfoldError:  # one that cannot be run is no candidate
            continue
        known.append(Candidate(name, card.packed_bytes, card.bytes_per_token, card.kv_bytes(1, CONTEXT)))
    known += [
        Candidate(f"{entry.name} (not pulled)", entry.size, entry.size, 0)
        for entry in store.short_names()
        if entry.name not in here
    ]
    return known


def _print(found: dict[str, Any], measured: list[Bandwidth]) -> None:
    cpu, memory, store = found["processor"], found["memory"], found["store"]
    total = f" of {console.size(memory['total'])}" if memory["total"] else ""
    console.facts(
        "This machine",
        [
            ("processor", cpu["model"]),
            ("cores", f"{cpu['cores']} usable of {cpu['cores_total']}"),
            ("instructions", ", ".join(cpu["features"]) or "none that we have kernels for"),
            ("kernels", f"{cpu['kernels']} (what isa=auto takes)"),
            ("L3 cache", console.size(cpu["l3_bytes"]) if cpu["l3_bytes"] else None),
            ("memory", f"{console.size(memory['free'])} free{total}"),
            ("bandwidth", "; ".join(
                f"{one.bytes_per_second / 1e9:.1f} GB/s with {one.threads} thread{'s' * (one.threads > 1)}"
                for one in measured
            )),
            ("", f"(measured: {found['bandwidth']['method']})"),
            ("power counters", ", ".join(found["power_counters"]) or "none: energy can only be modelled"),
            ("python", found["python"]),
            ("compiler", found["compiler"] or "none found (needed only to build)"),
            ("system", found["system"]),
            ("models are in", f"{store['home']} ({console.size(store['disk_free'])} free on disk)"),
        ],
    )  # fmt: skip
    cache = (
        f" A model not much larger than the cache ({console.size(cpu['l3_bytes'])}) may pass it."
        if cpu["l3_bytes"]
        else ""
    )
    console.table(
        "What fits",
        ("model", "weights", f"KV, {CONTEXT} tokens", "fits", "tokens/s, upper bound"),
        [
            (one["model"], console.size(one["weights"]), console.size(one["kv"]) if one["kv"] else "-",
             "yes" if one["fits"] else "no", f"{one['tokens_per_second_upper_bound']:.1f}")
            for one in found["models"]
        ],
        note="The upper bound is the measured bandwidth divided by the bytes of weights read for one token of one "
        f"sequence. Real speed is below it; several sequences at a time share each read and get more together.{cache}",
    )  # fmt: skip
