"""``sixfold bench growth``: how the time of a step grows with batch, context and model.

Owns: its options, table and plot. Must not know: how steps are timed or fitted (the room ``bench``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sixfold.cli import console
from sixfold.cli.bench.output import Output, circumstances, finish, from_home, percent
from sixfold.cli.options import AcceptLicense, Isa, Json, KVMemory, Threads, numbers
from sixfold.errors import ConfigError

if TYPE_CHECKING:
    from sixfold.config import EngineConfig

PARTS = (
    ("batch", "sequences"),
    ("context", "thousand tokens of context"),
    ("weights", "GB of weights"),
    ("parameters", "billion parameters"),
)


def growth(
    models: Annotated[list[str], typer.Argument(help="Models; the first one is run at every batch and context.")],
    batch: Annotated[str, typer.Option(metavar="N,N", help="Sequences in a step.")] = "1,2,4,8,16,32,64,128",
    context: Annotated[
        str,
        typer.Option(metavar="N,N", help="Tokens of context; may exceed what the model was trained for."),
    ] = "128,512,2048,4096,8192,32768",
    repeats: Annotated[int, typer.Option(min=1, help="Steps of each; the medians are shown.")] = 10,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it (needs the extra sixfold[bench]).")] = None,
    threads: Threads = None,
    isa: Isa = None,
    kv_memory: KVMemory = None,
    accept_license: AcceptLicense = False,
    json: Json = False,
    output: Output = None,
) -> None:
    """Time of a decode step against batch, context and model size, fitted by lines; attention's share of it."""
    from sixfold import config
    from sixfold.bench.growth import fits

    if plot is not None:
        _pyplot()  # said before anything is measured
    batches, contexts = numbers(batch), numbers(context)
    found: list[dict[str, Any]] = []
    skipped: list[dict[str, int]] = []
    flags = {"threads": threads, "isa": isa, "kv_memory": kv_memory}
    for index, model in enumerate(models):
        settings = config.load(config.EngineConfig, "engine", {"model": model, **flags})
        wanted = (batches, contexts) if index == 0 else ([1], [min(contexts)])
        one, left_out = _measure(settings, *wanted, repeats, accept_license)
        found.append(one)
        skipped += left_out
    result = {
        "bench": "growth",
        **circumstances(model=models[0], threads=threads, isa=isa),
        "repeats": repeats,
        "models": found,
        "fits": fits(found),
        "skipped": skipped,
    }
    if plot is not None:
        _draw(result, plot)
    if finish(result, output, json):
        _print(result)


def _measure(
    settings: EngineConfig, batches: list[int], contexts: list[int], repeats: int, accept_license: bool
) -> tuple[dict[str, Any], list[dict[str, int]]]:
    """(the model and its times, cases that the KV memory does not hold)."""
    from sixfold.bench import growth
    from sixfold.cli.fetch import fetch
    from sixfold.compile.costs import parameters, weight_bytes
    from sixfold.compile.plan import build
    from sixfold.engine.memory import free_memory
    from sixfold.runtime.kv_format import page_bytes
    from sixfold.runtime.native import NativeExecutor
    from sixfold.weights.model_file import open_model

    with open_model(fetch(settings.model, accept_license=accept_license).path) as file:
        plan = build(file, cache=settings.plan_cache)
    room = (settings.kv_memory or free_memory() // 2) // page_bytes(plan.meta["sizes"], settings.kv_format)
    wanted = growth.cases(batches, contexts)
    fitting = [case for case in wanted if growth.pages_for(case) <= room]
    if not fitting:
        raise ConfigError("No step fits into the KV memory", remedy="Raise --kv-memory, or lower --context or --batch")
    executor = NativeExecutor(
        plan, num_pages=max(map(growth.pages_for, fitting)), max_tokens=max(batch for batch, _ in fitting),
        threads=settings.threads, isa=settings.isa,
    )  # fmt: skip
    with console.steps(settings.model, repeats) as report:
        times = growth.measure(executor, fitting, repeats, report)
    size = growth.Size(weight_bytes(plan), parameters(plan))
    alone = [context for batch, context in fitting if batch == 1]
    described = growth.described(from_home(settings.model), size, times)
    described["attention"] = growth.attention(executor, alone, repeats)
    left_out = [dict(zip(("batch", "context"), case, strict=True)) for case in wanted if case not in fitting]
    return described, left_out


def _print(result: dict[str, Any]) -> None:
    for model in result["models"]:
        console.table(
            f"{model['model']}: {console.size(model['weight_bytes'])} of weights a step, "
            f"{model['parameters'] / 1e6:.0f} million parameters",
            ("batch", "context", "ms a step"),
            [(s["batch"], s["context"], f"{s['ms']:.2f}") for s in model["steps"]],
        )
    console.table(
        f"Attention in a step of one sequence of {result['models'][0]['model']}",
        ("context", "ms a step", "ms attention", "share"),
        [
            (one["context"], f"{one['step_ms']:.2f}", f"{one['attention_ms']:.2f}", percent(one["attention_share"]))
            for one in result["models"][0]["attention"]
        ],
    )
    for case in result["skipped"]:
        typer.echo(f"Left out: batch {case['batch']}, context {case['context']}: the KV memory does not hold it.")
    console.table(
        "Fitted lines",
        ("of", "ms for each", "ms besides", "largest residual", "exponent"),
        [
            (unit, f"{line['slope']:.4f}", f"{line['base']:.3f}", f"{100 * line['largest_residual']:.1f}%",
             f"{line['exponent']:.2f}")
            for name, unit in PARTS
            if (line := result["fits"][name]) is not None
        ],
    )  # fmt: skip


def _pyplot() -> Any:
    try:
        import matplotlib  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ConfigError(
            "Nothing to draw with", cause="matplotlib is not installed", remedy="pip install 'sixfold[bench]'"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot  # type: ignore[import-not-found, unused-ignore]

    return pyplot


def _draw(result: dict[str, Any], path: Path) -> None:
    """One panel a fit that could be made: points, and the line with its exponent; and one of attention's share."""
    import numpy as np

    from sixfold.bench.growth import points

    pyplot = _pyplot()
    drawn = [(name, unit, result["fits"][name]) for name, unit in PARTS if result["fits"][name] is not None]
    figure, panels = pyplot.subplots(1, len(drawn) + 1, figsize=(5 * len(drawn) + 5, 4), squeeze=False)
    for panel, (name, unit, line) in zip(panels[0], drawn, strict=False):
        x, y = points(result["models"], name)
        smooth = np.geomspace(min(x), max(x), 100)
        panel.plot(x, y, "o", smooth, line["slope"] * smooth + line["base"], "-")
        of = "models" if name in ("weights", "parameters") else result["model"]
        title = f"{of}: {name}, exponent {line['exponent']:.2f}"
        panel.set(xscale="log", yscale="log", xlabel=unit, ylabel="ms a step", title=title)
        panel.set_xticks(x, [f"{value:.3g}" for value in x], minor=False)
        panel.xaxis.minorticks_off()
    shares = result["models"][0]["attention"]
    last = panels[0][-1]
    last.plot([one["context"] / 1000 for one in shares], [100 * one["attention_share"] for one in shares], "o-")
    last.set(xscale="log", ylim=(0, 100), xlabel=PARTS[1][1], ylabel="% of a step", title="attention's share")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
