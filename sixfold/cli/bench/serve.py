"""``sixfold bench serve``: load on any server of OpenAI's API, over HTTP.

Owns: its options and tables. Must not know: how requests are made and timed (the room ``bench``).
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sixfold.cli import console
from sixfold.cli.bench.output import Output, circumstances, finish, number_range
from sixfold.cli.options import AcceptLicense, Json, OptionalModel, numbers
from sixfold.errors import ConfigError

if TYPE_CHECKING:
    from sixfold.bench.client import Server
    from sixfold.bench.load import Shape


def serve(
    model: OptionalModel = None,
    url: Annotated[
        str | None, typer.Option(help="A server that runs already; default: one is started for MODEL and stopped.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The model's name in the API; default: the first.")
    ] = None,
    clients: Annotated[str, typer.Option(metavar="N,N", help="Clients that ask at the same time.")] = "1,8,32,64",
    requests: Annotated[
        int | None, typer.Option(min=1, help="Requests for each number of clients; default: 4 a client, at least 16.")
    ] = None,
    prompt_tokens: Annotated[str, typer.Option(metavar="MIN,MAX", help="Prompt lengths, drawn evenly.")] = "16,128",
    new_tokens: Annotated[str, typer.Option(metavar="MIN,MAX", help="Answer lengths, drawn evenly.")] = "16,64",
    prefix_tokens: Annotated[
        int,
        typer.Option(min=0, help="Tokens that all prompts begin with, beside the drawn ones: a known conversation."),
    ] = 0,
    ttft_cold: Annotated[
        str | None,
        typer.Option(
            metavar="N,N", help="Instead: time to the first token of new prompts of these lengths, one by one."
        ),
    ] = None,
    budget_ms: Annotated[float, typer.Option(help="With --ttft-cold: how many tokens fit into this time?")] = 50.0,
    text: Annotated[bool, typer.Option("--text", help="Prompts of words instead of token ids.")] = False,
    token_ids: Annotated[str, typer.Option(metavar="MIN,MAX", help="Ids that prompts are drawn from.")] = "1000,9999",
    without: Annotated[
        str, typer.Option(metavar="FIELD,FIELD", help="Fields of a request to leave out (min_tokens,ignore_eos,...).")
    ] = "",
    seed: Annotated[int, typer.Option(help="Draws lengths and tokens.")] = 0,
    api_key: Annotated[str | None, typer.Option(help="What the server wants to be sent.")] = None,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds that a request may take.")] = 600.0,
    server_args: Annotated[
        str, typer.Option(metavar="ARGS", help="Given to `sixfold serve` when one is started.")
    ] = "",
    accept_license: AcceptLicense = False,
    json: Json = False,
    output: Output = None,
) -> None:
    """Tokens a second and latencies under load, on this or any other server."""
    from sixfold.bench.client import Server
    from sixfold.bench.load import Shape

    ids = None if text else number_range(token_ids, "--token-ids")
    shape = Shape(
        number_range(prompt_tokens, "--prompt-tokens"), number_range(new_tokens, "--new-tokens"), ids, prefix_tokens
    )  # fmt: skip
    with _where(url, model, server_args, accept_license) as base:
        called = name or _first_model(base, api_key)
        server = Server(base, called, api_key, frozenset(without.split(",")), timeout)
        asyncio.run(_warm(server, shape))
        found: dict[str, Any]
        if ttft_cold:
            found = _cold(server, shape, numbers(ttft_cold), requests or 20, seed, budget_ms)
        else:
            found = _loads(server, shape, numbers(clients), requests, seed)
    frame = {
        "bench": "serve",
        **circumstances(model=called, url=url or f"started: sixfold serve {model or ''}".strip()),
    }
    described = {
        "prompt_range": shape.prompt_tokens,
        "new_range": shape.new_tokens,
        "prefix_tokens": prefix_tokens,
        "text": text,
        "seed": seed,
    }
    result = {**frame, **described, **found}
    if finish(result, output, json):
        (_print_cold if ttft_cold else _print_loads)(result)


@contextlib.contextmanager
def _where(url: str | None, model: str | None, arguments: str, accept_license: bool) -> Any:
    """The URL to ask, without a trailing /v1."""
    if url is not None:
        yield url.rstrip("/").removesuffix("/v1")
        return
    from sixfold import config
    from sixfold.bench.server_process import serving
    from sixfold.cli.fetch import fetch

    asked = config.load(config.EngineConfig, "engine", {"model": model}).model
    fetch(asked, accept_license=accept_license)
    with contextlib.ExitStack() as stack:
        with console.busy(f"Starting a server for {asked}"):
            base = stack.enter_context(serving(asked, shlex.split(arguments))).url
        yield base


def _first_model(url: str, api_key: str | None) -> str:
    import httpx

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = httpx.get(f"{url}/v1/models", headers=headers, timeout=30)
        return str(answer.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{url} names no model", cause=str(error) or type(error).__name__, remedy="Check --url, or give --model"
        ) from None


async def _warm(server: Server, shape: Shape) -> None:
    """One request that does not count; a server that refuses it is not measured."""
    from sixfold.bench.client import Client
    from sixfold.bench.load import draw

    client = Client(server)
    outcome = await client.ask(draw(shape, 1, -1)[0])
    await client.close()
    if outcome.error is not None:
        raise ConfigError(
            f"{server.url} does not answer as it should", cause=outcome.error,
            remedy="Check --url and --model; --text and --without help with servers that know fewer fields",
        )  # fmt: skip


def _loads(server: Server, shape: Shape, clients: list[int], requests: int | None, seed: int) -> dict[str, Any]:
    from sixfold.bench import load

    results = []
    for count in clients:
        wanted = load.draw(shape, requests or max(16, 4 * count), seed + count)
        with console.steps(f"{count} clients", len(wanted)) as report:
            results.append(asyncio.run(load.run(server, wanted, count, report)))
    return {**(results[0] if len(results) == 1 else {}), "results": results}


def _cold(
    server: Server, shape: Shape, lengths: list[int], repeats: int, seed: int, budget_ms: float
) -> dict[str, Any]:  # fmt: skip
    from sixfold.bench import load

    with console.steps("Cold prompts", repeats * len(lengths)) as report:
        found = asyncio.run(load.cold(server, shape, lengths, repeats, seed, report))
    return {"cold": found, "budget_ms": budget_ms, "tokens_within_budget": load.tokens_within(found, budget_ms)}


def _print_loads(result: dict[str, Any]) -> None:
    console.table(
        "Load, times in ms as p50 / p95 / p99",
        ("clients", "requests", "failed", "tokens/s", "requests/s", "first token", "between tokens"),
        [
            (r["clients"], r["requests"], r["failures"], f"{r['output_tokens_per_second']:.1f}",
             f"{r['requests_per_second']:.2f}", _three(r["ttft_ms"], 0), _three(r["inter_token_ms"], 1))
            for r in result["results"]
        ],
    )  # fmt: skip
    for one in result["results"]:
        _print_failures(f"{one['clients']} clients", one)
        if one["wrong_lengths"]:
            typer.echo(f"{one['clients']} clients: {one['wrong_lengths']} answers were not as long as asked for.")


def _print_cold(result: dict[str, Any]) -> None:
    console.table(
        "First token of new prompts, one request at a time",
        ("prompt tokens", "requests", "failed", "ms, p50 / p95 / p99"),
        [(r["prompt_tokens"], r["requests"], r["failures"], _three(r["ttft_ms"], 1)) for r in result["cold"]],
    )
    for one in result["cold"]:
        _print_failures(f"{one['prompt_tokens']} tokens", one)
    within = result["tokens_within_budget"]
    typer.echo(f"Within {result['budget_ms']:g} ms: {'none of these' if within is None else f'{within} tokens'}.")


def _print_failures(what: str, one: dict[str, Any]) -> None:
    for reason, count in one["failure_reasons"].items():
        typer.echo(f"{what}: {count} failed: {reason}")


def _three(times: dict[str, float | None], digits: int) -> str:
    return " / ".join("-" if value is None else f"{value:.{digits}f}" for value in times.values())
