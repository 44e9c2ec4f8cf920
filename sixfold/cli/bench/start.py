"""``sixfold bench start``: how long a server takes to start, and the memory it takes.

Owns: its options and tables. Must not know: how servers are started or weighed (the room ``bench``).
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sixfold.cli import console
from sixfold.cli.bench.output import Output, circumstances, finish, number_range, percent
from sixfold.cli.options import AcceptLicense, Isa, Json, Model, Threads, byte_count


def start(
    model: Model,
    starts: Annotated[int, typer.Option(min=1, help="Starts with the plan there; the medians are shown.")] = 5,
    first_starts: Annotated[int, typer.Option(min=1, help="Starts that have to build the plan.")] = 3,
    requests: Annotated[int, typer.Option(min=1, help="Requests to each server before its memory is read.")] = 16,
    prompt_tokens: Annotated[str, typer.Option(metavar="MIN,MAX", help="Prompt lengths, drawn evenly.")] = "16,128",
    new_tokens: Annotated[str, typer.Option(metavar="MIN,MAX", help="Answer lengths, drawn evenly.")] = "16,64",
    token_ids: Annotated[str, typer.Option(metavar="MIN,MAX", help="Ids that prompts are drawn from.")] = "1000,9999",
    kv_memory: Annotated[str, typer.Option(metavar="SIZE", help="KV memory of each server.")] = "1GiB",
    threads: Threads = None,
    isa: Isa = None,
    accept_license: AcceptLicense = False,
    json: Json = False,
    output: Output = None,
) -> None:
    """Time until a server is ready, with its plan there and without, and the memory of two servers of one model."""
    from sixfold import config
    from sixfold.bench import start as measured
    from sixfold.bench.load import Shape
    from sixfold.cli.fetch import fetch

    byte_count(kv_memory)
    shape = Shape(
        number_range(prompt_tokens, "--prompt-tokens"), number_range(new_tokens, "--new-tokens"),
        number_range(token_ids, "--token-ids"),
    )  # fmt: skip
    asked = config.load(config.EngineConfig, "engine", {"model": model}).model
    fetch(asked, accept_license=accept_license)
    flags = {"--kv-memory": kv_memory, "--threads": threads, "--isa": isa}
    given = [str(part) for flag in flags.items() if flag[1] is not None for part in flag]
    arguments = [*measured.NAMED, *given]
    with console.steps(f"Starts of {asked}", 1 + starts + first_starts) as report:
        times = measured.starts(asked, arguments, shape, starts, first_starts, report)
    with console.busy("Weighing two servers"):
        memory = measured.weigh(asked, arguments, shape, requests)
    frame = circumstances(model=asked, threads=threads, isa=isa)
    result = {
        "bench": "start",
        **frame,
        "kv_memory": kv_memory,
        "requests": requests,
        "starts": times,
        "memory": memory,
    }
    if finish(result, output, json):
        _print(result)


def _print(result: dict[str, Any]) -> None:
    console.table(
        "Seconds from the start of the process, medians",
        ("start", "runs", "ready", "first token"),
        [
            (one["kind"], len(one["ready_s"]["runs"]), f"{one['ready_s']['median']:.2f}",
             f"{one['first_token_s']['median']:.2f}")
            for one in result["starts"]
        ],
    )  # fmt: skip
    memory = result["memory"]
    console.table(
        "Two servers of one model, after a load",
        ("server", "resident", "plan", "of it shared", "KV", "rest"),
        [
            (index + 1, *map(console.size, (one["rss"], one["plan"]["rss"], one["plan"]["shared_clean"],
                                            one["kv"]["rss"], one["rest"]["rss"])))
            for index, one in enumerate(memory["servers"])
        ],
    )  # fmt: skip
    typer.echo(f"{percent(memory['plan_shared_share'])} of the plan's pages are those of both.")
