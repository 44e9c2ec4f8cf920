"""``sixfold bench``: how fast a model runs here.

Owns: options and output of the benchmarks. Must not know: how anything is timed (``cli/timing.py``).
"""

from __future__ import annotations

import datetime
import platform
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sixfold.cli import console
from sixfold.cli.options import AcceptLicense, Isa, Json, KVMemory, Model, Threads, numbers

if TYPE_CHECKING:
    from sixfold.cli.timing import Bench
    from sixfold.config import EngineConfig

app = typer.Typer(help="Measure how fast a model runs on this machine.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Measure how fast a model runs on this machine."""


@app.command()
def latency(
    model: Model,
    prompt_tokens: Annotated[str, typer.Option(metavar="N,N", help="Prompt lengths.")] = "32,256",
    batch: Annotated[str, typer.Option(metavar="N,N", help="Requests that begin together.")] = "1,4",
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens each request generates.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each; the medians are shown.")] = 3,
    threads: Threads = None,
    isa: Isa = None,
    kv_memory: KVMemory = None,
    accept_license: AcceptLicense = False,
    json: Json = False,
) -> None:
    """Time to the first token, time between tokens, and tokens a second."""
    lengths, batches = numbers(prompt_tokens), numbers(batch)
    bench = _load(model, threads, isa, kv_memory, accept_license, max_num_seqs=max(batches))
    cases = [(length, together) for length in lengths for together in batches]
    results = []
    with console.steps("Latency", len(cases) * repeats) as report:
        for index, (length, together) in enumerate(cases):
            done = index * repeats
            measured = bench.latency(length, together, new_tokens, repeats, lambda n, done=done: report(done + n))  # type: ignore[misc]
            results.append({"prompt_tokens": length, "batch": together, **measured})
    head = _circumstances(bench)
    if json:
        console.print_json(
            {"bench": "latency", **head, "new_tokens": new_tokens, "repeats": repeats, "results": results}
        )
        return
    _print_head(head)
    console.table(
        f"Latency, medians of {repeats} runs, {new_tokens} new tokens",
        ("prompt tokens", "batch", "first token ms", "between tokens ms", "prompt tokens/s", "new tokens/s"),
        [
            (r["prompt_tokens"], r["batch"], f"{r['ttft_ms']:.1f}", f"{r['inter_token_ms']:.2f}",
             f"{r['prompt_tokens_per_second']:.1f}", f"{r['decode_tokens_per_second']:.1f}")
            for r in results
        ],
        note="New tokens/s: all sequences together, after the first token of the last one.",
    )  # fmt: skip


@app.command()
def throughput(
    model: Model,
    requests: Annotated[int, typer.Option(min=1, help="Requests, all there from the beginning.")] = 16,
    prompt_tokens: Annotated[str, typer.Option(metavar="MIN,MAX", help="Prompt lengths, drawn evenly.")] = "16,128",
    new_tokens: Annotated[str, typer.Option(metavar="MIN,MAX", help="Answer lengths, drawn evenly.")] = "16,64",
    max_num_seqs: Annotated[int | None, typer.Option(min=1, help="Sequences in one step.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the lengths and tokens.")] = 0,
    threads: Threads = None,
    isa: Isa = None,
    kv_memory: KVMemory = None,
    accept_license: AcceptLicense = False,
    json: Json = False,
) -> None:
    """Tokens a second over many requests of random lengths, batched continuously."""
    prompts, answers = _range(prompt_tokens, "--prompt-tokens"), _range(new_tokens, "--new-tokens")
    bench = _load(model, threads, isa, kv_memory, accept_license, max_num_seqs=max_num_seqs)
    with console.steps("Throughput", requests) as report:
        result = bench.throughput(requests, prompts, answers, seed, report)
    head = _circumstances(bench)
    if json:
        console.print_json({"bench": "throughput", **head, "seed": seed, "results": result})
        return
    _print_head(head)
    console.facts(
        f"Throughput of {requests} requests in {result['seconds']:.2f} s",
        [
            ("requests/s", f"{result['requests_per_second']:.2f}"),
            ("prompt tokens", f"{result['prompt_tokens']}, {result['prompt_tokens_per_second']:.1f} a second"),
            ("new tokens", f"{result['new_tokens']}, {result['new_tokens_per_second']:.1f} a second"),
            ("all tokens", f"{result['total_tokens_per_second']:.1f} a second"),
            ("first token", f"{result['ttft_ms']:.0f} ms, median (waiting included)"),
            ("between tokens", f"{result['inter_token_ms']:.1f} ms, median"),
        ],
    )


def _load(
    model: str, threads: int | None, isa: str | None, kv_memory: int | None, accept_license: bool, **flags: int | None
) -> Bench:
    from sixfold import config
    from sixfold.cli.fetch import fetch
    from sixfold.cli.timing import Bench

    given = {"model": model, "threads": threads, "isa": isa, "kv_memory": kv_memory, **flags}
    settings: EngineConfig = config.load(config.EngineConfig, "engine", given)
    fetch(settings.model, accept_license=accept_license)
    with console.busy(f"Loading {settings.model}"):
        return Bench(settings)


def _range(text: str, option: str) -> tuple[int, int]:
    values = numbers(text)
    if len(values) > 2 or values[0] > values[-1]:
        raise typer.BadParameter(f"{text!r} is no range; write 16,128", param_hint=option)
    return values[0], values[-1]


def _circumstances(bench: Bench) -> dict[str, Any]:
    """Without these a number means nothing later."""
    from sixfold.cli.machine import processor

    cpu = processor()
    command = shlex.join(["sixfold", *sys.argv[1:]])
    return {
        "model": bench.model,
        "machine": {"processor": cpu.model, "cores": cpu.cores, "system": platform.platform()},
        "threads": bench.threads,
        "isa": bench.isa,
        "command": command,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _print_head(head: dict[str, Any]) -> None:
    machine = head["machine"]
    console.facts(
        f"{head['model']} on {machine['processor']}",
        [
            ("machine", f"{machine['cores']} cores, {machine['system']}"),
            ("run with", f"{head['threads']} threads, {head['isa']}"),
            ("command", head["command"]),
            ("date", head["date"]),
        ],
    )
    typer.echo()
