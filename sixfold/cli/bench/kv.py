"""``sixfold bench kv``: how much KV memory is wasted, and what the prefix cache saves.

Owns: its options and tables. Must not know: how anything is simulated (``cli/replay.py``) or timed (``cli/reuse.py``).
"""

from __future__ import annotations

import dataclasses
import secrets
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sixfold.cli import console
from sixfold.cli.bench.kv_long import measure_long, print_long
from sixfold.cli.bench.kv_reuse import Contexts, measure_reuse, measure_similar, print_reuse, print_similar, shares_of
from sixfold.cli.bench.output import Output, circumstances, finish
from sixfold.cli.options import AcceptLicense, Isa, Json, KVFormat, KVMemory, KVRedis, MaxModelLen, Model, Threads

if TYPE_CHECKING:
    from sixfold.config import EngineConfig

SECTIONS = ("waste", "prefix", "tier", "formats", "reuse", "similar", "long")
PAGE_SIZES = (16, 32, 128)  # what is run, and what it would be otherwise


def kv(
    model: Model,
    section: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="waste, prefix, tier, formats, or the longer reuse, similar and long; default: the first four.",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Waste: requests in the columns of the Azure traces; default: drawn ones."),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Waste: requests of the trace.")] = 2000,
    step_ms: Annotated[float, typer.Option(min=0.001, help="Waste: what a simulated step takes.")] = 3.0,
    token_ms: Annotated[float, typer.Option(min=0.0, help="Waste: and each token in it.")] = 0.1,
    history: Annotated[int, typer.Option(min=1, help="Prefix: tokens of a conversation so far.")] = 2000,
    new_tokens: Annotated[int, typer.Option(min=1, help="Prefix: tokens after them.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Prefix: rounds; the medians are shown.")] = 5,
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="Formats, reuse: a text in UTF-8.")] = None,
    windows: Annotated[int, typer.Option(min=1, help="Formats: windows of the text.")] = 6,
    ctx: Annotated[int, typer.Option(min=4, help="Formats: tokens in a window.")] = 4096,
    prompts: Annotated[int, typer.Option(min=1, help="Reuse: prompts of known chunks in a new order.")] = 8,
    chunks: Annotated[int, typer.Option(min=2, help="Reuse: chunks of a prompt.")] = 6,
    chunk_tokens: Annotated[int, typer.Option(min=64, help="Reuse: tokens of a chunk.")] = 512,
    shares: Annotated[str, typer.Option(metavar="LIST", help="Reuse: shares that are computed again.")] = "0.15",
    alone: Annotated[bool, typer.Option("--alone", help="Reuse: chunks were known one by one, not together.")] = False,
    pairs: Annotated[int, typer.Option(min=1, help="Similar: pairs of texts that differ in a fact.")] = 40,
    sentences: Annotated[int, typer.Option(min=8, help="Similar: sentences of a text.")] = 24,
    conversations: Annotated[int, typer.Option(min=1, help="Prefix: conversations at the same time.")] = 8,
    turns: Annotated[int, typer.Option(min=1, help="Prefix: turns of each.")] = 5,
    max_num_seqs: Annotated[int | None, typer.Option(min=1, help="Sequences in one step.")] = None,
    long_context: Annotated[int, typer.Option(min=2048, help="Long: tokens of context.")] = 1 << 17,
    seed: Annotated[int, typer.Option(help="Draws lengths and tokens.")] = 0,
    max_model_len: MaxModelLen = None,
    kv_memory: KVMemory = None,
    kv_format: KVFormat = None,
    threads: Threads = None,
    isa: Isa = None,
    kv_redis: KVRedis = None,
    accept_license: AcceptLicense = False,
    json: Json = False,
    output: Output = None,
) -> None:
    """What KV memory wastes, what known prefixes and reused context save, and what formats cost."""
    if section is not None and section not in SECTIONS:
        raise typer.BadParameter(f"{section!r} is none of {', '.join(SECTIONS)}", param_hint="--section")
    contexts = Contexts(text, prompts, pairs, chunks, chunk_tokens, sentences, _shares(shares), alone, seed)
    from sixfold import config
    from sixfold.cli.fetch import fetch

    flags = {
        "model": model, "max_model_len": max_model_len, "kv_memory": kv_memory, "kv_format": kv_format,
        "max_num_seqs": max_num_seqs,
        "threads": threads, "isa": isa, "prefix_cache": True, "kv_redis": kv_redis,
    }  # fmt: skip
    settings = config.load(config.EngineConfig, "engine", flags)
    redis, settings = settings.kv_redis, dataclasses.replace(settings, kv_disk=None, kv_redis=None, kv_s3=None)
    fetch(settings.model, accept_license=accept_license)
    result = {"bench": "kv", **circumstances(model=settings.model, threads=threads, isa=isa), "seed": seed}
    if section in (None, "waste"):
        result["waste"] = _waste(settings, trace, requests, seed, step_ms / 1000, token_ms / 1000)
    if section in (None, "prefix"):
        result |= _prefix(settings, (history, new_tokens, repeats), (conversations, turns), seed)
    if section in (None, "tier"):
        result |= _tiers(settings, redis, (history, new_tokens, min(repeats, 3)))
    if section in (None, "formats"):
        result["formats"] = _formats(settings, text, windows, ctx)
    if section == "reuse":
        result["reuse"] = measure_reuse(settings, contexts)
    if section == "similar":
        result["similar"] = measure_similar(settings, contexts)
    if section == "long":
        result["long"] = measure_long(settings, kv_format or "int4", long_context, repeats)
    if not finish(result, output, json):
        return
    for name, show in (
        ("waste", _print_waste), ("prefix", _print_prefix), ("tier", partial(_print_tier, where="on disk")),
        ("tier_redis", partial(_print_tier, where="in Redis")), ("formats", _print_formats),
        ("reuse", print_reuse), ("similar", print_similar), ("long", print_long),
    ):  # fmt: skip
        if name in result:
            show(result[name])


def _shares(text: str) -> tuple[float, ...]:
    try:
        return shares_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--shares") from None


def _waste(
    settings: EngineConfig, file: Path | None, requests: int, seed: int, step: float, token: float
) -> dict[str, Any]:  # fmt: skip
    from sixfold import store
    from sixfold.bench import trace
    from sixfold.cli.model_card import read_card
    from sixfold.cli.replay import Machine, Replay
    from sixfold.engine.loader import num_pages

    arrivals = trace.draw(requests, seed) if file is None else trace.read(file, requests)
    card = read_card(store.resolve(settings.model), settings.kv_format)
    pages = num_pages(card.sizes, settings, settings.max_model_len or card.context)
    longest = min(settings.max_model_len or card.context, pages * PAGE_SIZES[0])
    machine = Machine(
        pages, card.kv_page_bytes, settings.max_num_seqs, settings.max_num_batched_tokens, step, token
    )  # fmt: skip
    with console.steps("Waste", len(arrivals)) as report:
        found = Replay(machine, PAGE_SIZES).run(trace.scaled(arrivals, longest), report)
    source = "drawn" if file is None else file.name
    return {"trace": source, "step_ms": 1000 * step, "token_ms": 1000 * token, **found}


def _prefix(
    settings: EngineConfig, history: tuple[int, int, int], conversations: tuple[int, int], seed: int
) -> dict[str, Any]:  # fmt: skip
    """With what it was run on in place of what was asked for."""
    from sixfold.cli.reuse import Conversations, first_token, hit_rate
    from sixfold.cli.timing import Bench

    with console.busy(f"Loading {settings.model}"):
        bench = Bench(settings)
    load = Conversations(*conversations)
    with console.steps("First token", history[2]) as report:
        first = first_token(bench, *history, report)
    with console.steps("Conversations", load.turns) as report:
        rate = hit_rate(bench, load, seed, report)
    return {"threads": bench.threads, "isa": bench.isa, "prefix": {"first_token": first, "conversations": rate}}


def _tiers(settings: EngineConfig, redis: str | None, history: tuple[int, int, int]) -> dict[str, Any]:
    """After a restart: from a directory of its own, and from a Redis if there is one, which is left as it was."""
    from sixfold.cache.redis import open_redis, with_prefix

    with tempfile.TemporaryDirectory() as directory:
        result = {"tier": _tier(dataclasses.replace(settings, kv_disk=directory), history)}
    if redis is not None:
        own = with_prefix(redis, f"sixfold-bench-{secrets.token_hex(8)}")
        try:
            result["tier_redis"] = _tier(dataclasses.replace(settings, kv_redis=own), history)
        finally:
            open_redis(own).clear()
    return result


def _tier(settings: EngineConfig, history: tuple[int, int, int]) -> dict[str, Any]:
    from sixfold.cli.reuse import after_restart
    from sixfold.cli.timing import Bench

    with console.steps("After a restart", history[2]) as report:
        return after_restart(lambda: Bench(settings), *history, report)


def _formats(settings: EngineConfig, text: Path | None, windows: int, ctx: int) -> list[dict[str, Any]]:
    """Memory of a token in each format, and what it does to the perplexity of a text."""
    from sixfold import store
    from sixfold.cli.evaluate import read_text, scorer_of
    from sixfold.cli.model_card import read_card
    from sixfold.evaluation.perplexity import perplexity, windows_of
    from sixfold.runtime.kv_format import EXACT, scale_share, usable

    found = store.resolve(settings.model)
    head_size = read_card(found).sizes["head_size"]
    exact = read_card(found, EXACT).kv_page_bytes
    results: list[dict[str, Any]] = []
    for format in dict.fromkeys([*usable(head_size), settings.kv_format]):
        card = read_card(found, format)
        one: dict[str, Any] = {
            "format": format,
            "bytes_per_token": card.kv_bytes_per_token,
            "share_of_f16": card.kv_page_bytes / exact,
            "share_of_scales": scale_share(card.sizes, format),
        }
        if text is not None:
            context = min(ctx, card.context)
            flags = {"threads": settings.threads, "isa": settings.isa, "kv_format": format}
            tokenizer, scorer = scorer_of(found.path, context, flags, reference=False)
            chosen = windows_of(tokenizer, read_text(text), context)[:windows]
            with console.steps(f"Perplexity, {format}", len(chosen)) as report:
                scored = perplexity(chosen, scorer, lambda done, so_far, report=report: report(done))  # type: ignore[misc]
            one |= {"perplexity": scored.perplexity, "ctx": context, "windows": scored.windows}
            one["perplexity_change"] = scored.perplexity / (results or [one])[0]["perplexity"] - 1
        results.append(one)
    return results


def _print_tier(found: dict[str, Any], where: str) -> None:
    console.facts(
        f"\nThe same after a restart, with the history {where}, medians of {found['repeats']}",
        [
            ("all new", f"{found['ttft_without_ms']:.1f} ms"),
            (f"history {where}", f"{found['ttft_ms']:.1f} ms ({found['fetched_tokens']} tokens fetched)"),
            ("faster", f"{found['times_faster']:.1f} times"),
        ],
    )


def _print_formats(found: list[dict[str, Any]]) -> None:
    console.table(
        "\nFormats",
        ("format", "bytes a token", "of float16", "of it scales", "perplexity", "change"),
        [
            (
                one["format"],
                f"{one['bytes_per_token']:.0f}",
                _percent(one["share_of_f16"]),
                _percent(one["share_of_scales"]),
                f"{one['perplexity']:.4f}" if "perplexity" in one else "-",
                f"{100 * one['perplexity_change']:+.3f}%" if "perplexity" in one else "-",
            )
            for one in found
        ],
        note="" if "perplexity" in found[0] else "Perplexity needs a --text.",
    )


def _print_waste(found: dict[str, Any]) -> None:
    console.table(
        "Waste",
        ("pages of", "wasted"),
        [(f"{one['tokens']} tokens", _percent(one["waste"])) for one in found["by_page_size"]],
        note=f"Pages of sequences, {found['requests']} requests ({found['trace']}), in simulated time: "
        f"{found['step_ms']:g} ms a step and {found['token_ms']:g} ms a token.\n"
        f"{found['mean_pages_of_sequences']:.0f} of {found['pages']} pages in use on average, "
        f"{found['preemptions']} preemptions.",
    )
    typer.echo(f"All that is allocated, with what the prefix cache keeps: {_percent(found['waste'])}.\n")


def _print_prefix(found: dict[str, Any]) -> None:
    first, rate = found["first_token"], found["conversations"]
    shares = f"{_percent(rate['hit_rate'])} (at best {_percent(rate['best_hit_rate'])})"
    console.facts(
        f"First token after {first['history_tokens']} + {first['new_tokens']} tokens, medians of {first['repeats']}",
        [
            ("all new", f"{first['ttft_without_ms']:.1f} ms"),
            ("history known", f"{first['ttft_ms']:.1f} ms ({first['cached_tokens']} tokens cached)"),
            ("faster", f"{first['times_faster']:.1f} times"),
        ],
    )
    console.facts(
        f"\n{rate['conversations']} conversations of {rate['turns']} turns, {rate['system_tokens']} tokens in common",
        [
            ("looked up", f"{rate['looked_up']} tokens"),
            ("found", f"{rate['found']} tokens, {shares}"),
            ("evicted", f"{rate['evictions']} pages"),
        ],
    )  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
