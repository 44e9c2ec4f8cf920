"""``sixfold bench decode``: what ways of decoding cost and save, each a section beside plain decoding in the same run.

Owns: its options, sections and tables. Must not know: how anything is timed (one file a section beside ``timing.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sixfold.cli import console
from sixfold.cli.bench import decode_lora
from sixfold.cli.bench.loading import load, of
from sixfold.cli.bench.output import Output, finish, percent
from sixfold.cli.options import AcceptLicense, Isa, Json, KVFormat, KVMemory, Model, Threads

if TYPE_CHECKING:
    from sixfold.cli.timing import Bench


class Load(NamedTuple):
    prompt_tokens: int
    batch: int
    new_tokens: int
    repeats: int


def decode(
    model: Model,
    section: Annotated[
        str | None, typer.Option(metavar="NAME", help="structured, speculation, lora; default: all.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Requests that begin together.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=4, help="Tokens each request generates.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of all cases; the medians are shown.")] = 7,
    threads: Threads = None,
    isa: Isa = None,
    kv_memory: KVMemory = None,
    kv_format: KVFormat = None,
    accept_license: AcceptLicense = False,
    json: Json = False,
    output: Output = None,
) -> None:
    """What structured output costs a step, what forced and drafted tokens save, and what LoRA adapters cost."""
    if section is not None and section not in SECTIONS:
        raise typer.BadParameter(f"{section!r} is none of {', '.join(SECTIONS)}", param_hint="--section")
    chosen = SECTIONS if section is None else {section: SECTIONS[section]}
    bench = load(
        model, accept_license, threads=threads, isa=isa, kv_memory=kv_memory, kv_format=kv_format, max_num_seqs=batch,
        max_loras=decode_lora.slots(batch),
    )  # fmt: skip
    work = Load(prompt_tokens, batch, new_tokens, repeats)
    found = {name: measure(bench, work) for name, (measure, _) in chosen.items()}
    if finish({"bench": "decode", **of(bench), **found}, output, json):
        for name, (_, show) in chosen.items():
            show(found[name])


def _structured(bench: Bench, work: Load) -> dict[str, Any]:
    from sixfold.cli.structured_cost import measure

    with console.steps("Structured output", work.repeats) as report:
        return measure(bench, work.prompt_tokens, work.batch, work.new_tokens, work.repeats, report)


def _show_structured(found: dict[str, Any]) -> None:
    speed, steps = found["new_tokens_per_second"], found["steps"]
    console.table(
        f"Structured output, batch {found['batch']}, {found['new_tokens']} new tokens, medians of {found['repeats']}",
        ("", "step ms", "steps", "new tokens/s"),
        [
            ("plain", f"{found['plain_step_ms']:.2f}", f"{steps['plain']:.0f}", f"{speed['plain']:.0f}"),
            ("JSON schema", f"{found['masked_step_ms']:.2f}", f"{steps['masked']:.0f}", f"{speed['masked']:.0f}"),
            ("and jump-ahead", "", f"{steps['jumping']:.0f}", f"{speed['jumping']:.0f}"),
        ],
        note=f"A step costs {percent(found['cost_of_a_step'])} more under the schema. A mask takes "
        f"{found['mask_us']:.0f} us, {percent(found['masks_done_while_the_model_ran'])} of them while the model ran. "
        f"Jump-ahead saves {percent(found['steps_saved'])} of the steps.",
    )


def _speculation(bench: Bench, work: Load) -> dict[str, Any]:
    from sixfold.cli.speculation_gain import measure

    with console.steps("Speculation", work.repeats) as report:
        return measure(bench, work.batch, work.new_tokens, work.repeats, report)


def _show_speculation(found: dict[str, Any]) -> None:
    console.table(
        f"Prompt lookup, {found['new_tokens']} new tokens, medians of {found['repeats']}",
        ("text", "batch", "plain tokens/s", "drafted", "times", "accepted", "a draft"),
        [
            (
                one["text"],
                str(one["batch"]),
                f"{one['plain_tokens_per_second']:.0f}",
                f"{one['tokens_per_second']:.0f}",
                f"{one['times_faster']:.2f}",
                f"{one['accepted_tokens']} of {one['drafted_tokens']}",
                f"{one['mean_accepted_length']:.1f}",
            )
            for one in found["cases"]
        ],
        note="All tokens are those of plain decoding."
        if found["same_tokens"]
        else "TOKENS DIFFER from plain decoding.",
    )


SECTIONS: dict[str, tuple[Callable[[Bench, Load], dict[str, Any]], Callable[[dict[str, Any]], None]]] = {
    "structured": (_structured, _show_structured),
    "lora": (decode_lora.measure, decode_lora.show),
    "speculation": (_speculation, _show_speculation),
}
