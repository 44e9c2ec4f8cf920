"""Times what a grammar costs a decode step, and counts the steps that forced tokens save.

Owns: the load and the numbers. Must not know: options, tables.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from typing import Any

from sixfold.cli.timing import Bench, Report
from sixfold.types import SamplingParams, StepStats, StructuredOutputsParams

# An array that does not end by itself, of records as an API's user would ask for them.
SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "email": {"type": "string", "format": "email"},
            "colour": {"enum": ["red", "green", "blue"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
            "active": {"type": "boolean"},
        },
        "required": ["name", "age", "email", "colour", "tags", "active"],
        "additionalProperties": False,
    },
}


def measure(bench: Bench, length: int, batch: int, new_tokens: int, repeats: int, report: Report) -> dict[str, Any]:
    """Plain requests, the same under the schema, and with forced tokens appended at once, one after the other, each
    ``repeats`` times. Medians over all steps that ran one token a sequence; times in milliseconds."""
    bench.check(length + new_tokens)
    demand = StructuredOutputsParams(json=json.dumps(SCHEMA))
    grammars, masks = bench.core.grammars, bench.core.masks
    cases = {"plain": (None, False), "masked": (demand, False), "jumping": (demand, True)}
    durations: dict[str, list[float]] = {name: [] for name in cases}
    ratios: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    steps: dict[str, int] = dict.fromkeys(cases, 0)
    began = time.monotonic()
    grammars.compile(demand)
    compiled = time.monotonic() - began
    for index in range(repeats + 1):  # the first one warms up
        draw = random.Random(index)
        prompts = [bench.tokens(length, draw) for _ in range(batch)]
        medians: dict[str, float] = {}
        for name, (wanted, jumps) in cases.items():
            grammars.jump_ahead = jumps
            before = time.monotonic()
            found = bench.steps(prompts, _params(batch, new_tokens, wanted))
            if index == 0:
                masks.reset_counts()
                continue
            seconds[name].append(time.monotonic() - before)
            decoding = _decoding(found, batch)
            durations[name] += decoding
            steps[name] += len(found)
            if decoding:
                medians[name] = statistics.median(decoding)
        if index:
            ratios.append(medians["masked"] / medians["plain"] - 1)
        report(index)
    plain, masked = (1000 * statistics.median(durations[name]) for name in ("plain", "masked"))
    tokens = batch * new_tokens
    return {
        "batch": batch,
        "prompt_tokens": length,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "first_compilation_ms": 1000 * compiled,
        "plain_step_ms": plain,
        "masked_step_ms": masked,
        "cost_of_a_step": statistics.median(ratios),
        "cost_by_round": ratios,
        "mask_us": 1e6 * masks.seconds / max(masks.filled, 1),
        "masks_done_while_the_model_ran": 1 - masks.own / max(masks.filled, 1),
        "waited_us_a_mask": 1e6 * masks.waited / max(masks.filled, 1),
        "steps": {name: count / repeats for name, count in steps.items()},
        "steps_saved": 1 - steps["jumping"] / steps["masked"],
        "new_tokens_per_second": {name: tokens / statistics.median(times) for name, times in seconds.items()},
    }


def _params(batch: int, new_tokens: int, demand: StructuredOutputsParams | None) -> list[SamplingParams]:
    return [
        SamplingParams(temperature=0.8, seed=i, max_tokens=new_tokens, ignore_eos=True, structured_outputs=demand)
        for i in range(batch)
    ]


def _decoding(steps: list[StepStats], batch: int) -> list[float]:
    """Durations of the steps in which every sequence ran one token."""
    return [step.duration for step in steps if step.tokens == batch and not step.prompt_tokens]
