"""``sixfold bench throughput``: many requests at once, in this process.

Owns: its options and table. Must not know: how anything is timed (``cli/timing.py``).
"""

from __future__ import annotations

from typing import Annotated

import typer

from sixfold.cli import console
from sixfold.cli.bench.loading import load, of
from sixfold.cli.bench.output import Output, finish, number_range
from sixfold.cli.options import AcceptLicense, Isa, Json, KVFormat, KVMemory, Model, Threads


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
    kv_format: KVFormat = None,
    accept_license: AcceptLicense = False,
    json: Json = False,
    output: Output = None,
) -> None:
    """Tokens a second over many requests of random lengths, batched continuously."""
    prompts, answers = number_range(prompt_tokens, "--prompt-tokens"), number_range(new_tokens, "--new-tokens")
    bench = load(
        model,
        accept_license,
        threads=threads,
        isa=isa,
        kv_memory=kv_memory,
        kv_format=kv_format,
        max_num_seqs=max_num_seqs,
    )
    with console.steps("Throughput", requests) as report:
        result = bench.throughput(requests, prompts, answers, seed, report)
    if not finish({"bench": "throughput", **of(bench), "seed": seed, "results": result}, output, json):
        return
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
