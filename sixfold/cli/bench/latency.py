"""``sixfold bench latency``: requests that begin together, in this process; with ``--profile``, where the time goes.

Owns: its options and tables. Must not know: how anything is timed (``cli/timing.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sixfold.cli import console
from sixfold.cli.bench.loading import load, of
from sixfold.cli.bench.output import Output, finish, percent, rate, warn_of_noise
from sixfold.cli.options import AcceptLicense, Isa, Json, KVFormat, KVMemory, Model, Threads, numbers

if TYPE_CHECKING:
    from sixfold.cli.timing import Bench, Phase

PHASES: tuple[Phase, ...] = ("decode", "prefill")


def latency(
    model: Model,
    prompt_tokens: Annotated[str, typer.Option(metavar="N,N", help="Prompt lengths.")] = "32,256",
    batch: Annotated[str, typer.Option(metavar="N,N", help="Requests that begin together.")] = "1,4",
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens each request generates.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each; the medians are shown.")] = 3,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time goes, operator by operator.")] = False,
    threads: Threads = None,
    isa: Isa = None,
    kv_memory: KVMemory = None,
    kv_format: KVFormat = None,
    accept_license: AcceptLicense = False,
    json: Json = False,
    output: Output = None,
) -> None:
    """Time to the first token, time between tokens, and tokens a second."""
    lengths, batches = numbers(prompt_tokens), numbers(batch)
    bench = load(
        model, accept_license, threads=threads, isa=isa, kv_memory=kv_memory, kv_format=kv_format,
        max_num_seqs=max(batches),
    )  # fmt: skip
    cases = [(length, together) for length in lengths for together in batches]
    measured = _profiles if profile else _latencies
    frame = {"bench": "latency", **of(bench), "new_tokens": new_tokens, "repeats": repeats}
    result = frame | measured(bench, cases, new_tokens, repeats)
    if not finish(result, output, json):
        return
    if profile:
        _print_profiles(result)
    else:
        _print_latencies(result)


def _latencies(bench: Bench, cases: list[tuple[int, int]], new_tokens: int, repeats: int) -> dict[str, Any]:
    results = []
    with console.steps("Latency", len(cases) * repeats) as report:
        for index, (length, together) in enumerate(cases):
            done = index * repeats
            measured = bench.latency(length, together, new_tokens, repeats, lambda n, done=done: report(done + n))  # type: ignore[misc]
            results.append({"prompt_tokens": length, "batch": together, **measured})
    return {"results": results}


def _profiles(bench: Bench, cases: list[tuple[int, int]], new_tokens: int, repeats: int) -> dict[str, Any]:
    """The limits are measured between the cases, so that both see the same neighbours."""
    import dataclasses

    from sixfold.bench.profile import describe

    meter = bench.meter()
    found = []
    with console.steps("Profile", len(cases) * len(PHASES)) as report:
        for phase in PHASES:
            for length, together in cases:
                meter.round()
                found.append((phase, length, together, bench.profile(phase, length, together, new_tokens, repeats)))
                report(len(found))
        meter.round()
    limits = meter.limits()
    profiles = [
        {"phase": phase, "prompt_tokens": length, "batch": together,
         **describe(one.totals, one.steps, one.rows, one.step_seconds, one.executor_seconds, limits)}
        for phase, length, together, one in found
    ]  # fmt: skip
    return {"limits": dataclasses.asdict(limits), "profiles": profiles}


def _print_latencies(result: dict[str, Any]) -> None:
    console.table(
        f"Latency, medians of {result['repeats']} runs, {result['new_tokens']} new tokens",
        ("prompt tokens", "batch", "first token ms", "between tokens ms", "prompt tokens/s", "new tokens/s"),
        [
            (r["prompt_tokens"], r["batch"], f"{r['ttft_ms']:.1f}", f"{r['inter_token_ms']:.2f}",
             f"{r['prompt_tokens_per_second']:.1f}", f"{r['decode_tokens_per_second']:.1f}")
            for r in result["results"]
        ],
        note="New tokens/s: all sequences together, after the first token of the last one.",
    )  # fmt: skip


def _print_profiles(result: dict[str, Any]) -> None:
    for profile in result["profiles"]:
        rows: list[tuple[object, ...]] = [
            (o["operator"], f"{o['calls_per_step']:.0f}", f"{o['ms_per_step']:.3f}", percent(o["share_of_step"]),
             rate(o["weights_gb_per_second"] + o["kv_gb_per_second"]), rate(o["gmac_per_second"]),
             percent(o["share_of_limit"]), o["bound"] or "")
            for o in profile["operators"]
        ]  # fmt: skip
        step = profile["ms_per_step"]
        for name, value in (
            ("between operators", profile["between_operators_ms"]),
            ("outside the executor", profile["outside_executor_ms"]),
        ):
            rows.append((name, "", f"{max(value, 0.0):.3f}", percent(max(value, 0.0) / step), "-", "-", "-", ""))
        rows.append(("whole step", "", f"{step:.3f}", "100%", "", "", percent(profile["share_of_limit"]), ""))
        console.table(
            f"{profile['phase']}, prompt of {profile['prompt_tokens']}, batch {profile['batch']}: "
            f"{profile['steps']} steps of {profile['rows_per_step']:.0f} rows",
            ("operator", "calls", "ms", "step", "GB/s", "GMAC/s", "of limit", "bound by"),
            rows,
        )
    limits = result["limits"]
    bandwidth = limits["weights_bytes"] or limits["ram_bytes"]
    integer, floating = (max(limits[name].values()) / 1e9 for name in ("integer_macs", "float_macs"))
    typer.echo(
        f"Limits here and now, {limits['threads']} threads: weights read at {bandwidth / 1e9:.1f} GB/s, "
        f"{integer:.0f} int8 and {floating:.0f} float GMAC/s."
    )
    warn_of_noise(limits["noise"])
