"""``sixfold bench kernels``: this machine's limits, and the matrix products of a model's shapes against them.

Owns: its options and tables. Must not know: how anything is timed (the room ``bench``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sixfold.cli import console
from sixfold.cli.bench.output import Output, circumstances, finish, percent, warn_of_noise
from sixfold.cli.options import AcceptLicense, Isa, Json, Model, Threads, numbers

if TYPE_CHECKING:
    from sixfold.compile.formats import Format
    from sixfold.compile.plan import Plan


def kernels(
    model: Model,
    rows: Annotated[str, typer.Option(metavar="N,N", help="Rows of activations.")] = "1,4,8,32,128,512",
    formats: Annotated[
        str, typer.Option(metavar="all|model|TYPE,TYPE", help="GGUF types whose packed form is measured.")
    ] = "all",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each; the medians are shown.")] = 5,
    threads: Threads = None,
    isa: Isa = None,
    accept_license: AcceptLicense = False,
    json: Json = False,
    output: Output = None,
) -> None:
    """What memory and processor can do at most, and every format's matrix product against that."""
    from sixfold import config
    from sixfold.bench.kernels import measure
    from sixfold.cli.fetch import fetch
    from sixfold.compile.costs import matrix_shapes
    from sixfold.compile.plan import build
    from sixfold.runtime.isa import chosen
    from sixfold.runtime.native import usable_cores
    from sixfold.weights.model_file import open_model

    settings = config.load(config.EngineConfig, "engine", {"model": model, "threads": threads, "isa": isa})
    counts = sorted({1, settings.threads or usable_cores()})
    path = fetch(settings.model, accept_license=accept_license).path
    with console.busy(f"Loading {settings.model}"), open_model(path) as file:
        plan = build(file, cache=settings.plan_cache)
    wanted = _formats(formats, plan)
    shapes = sorted({(shape.rows, shape.columns) for shape in matrix_shapes(plan)})
    kernels_used = chosen() if settings.isa == "auto" else settings.isa
    with console.steps("Products", len(shapes) * len(wanted) * len(counts)) as report:
        measured = measure(
            shapes, wanted, numbers(rows), counts, isa=kernels_used, rounds=repeats, report=report
        )  # fmt: skip
    frame = circumstances(model=settings.model, threads=counts[-1], isa=kernels_used)
    result = {"bench": "kernels", **frame, "repeats": repeats, **measured}
    if finish(result, output, json):
        _print(result)


def _formats(text: str, plan: Plan) -> list[Format]:
    from sixfold.bench.kernels import formats_named
    from sixfold.compile.costs import matrix_shapes
    from sixfold.compile.formats import FORMATS

    if text == "model":
        return list(dict.fromkeys(shape.format for shape in matrix_shapes(plan)))
    try:
        return formats_named(FORMATS if text == "all" else text.upper().split(","))
    except KeyError as error:
        raise typer.BadParameter(
            f"{error.args[0]} is none of {', '.join(FORMATS)}", param_hint="--formats"
        ) from None  # fmt: skip


def _print(result: dict[str, Any]) -> None:
    console.table(
        "Limits, medians",
        ("threads", "memory GB/s", "cache GB/s", "int8 GMAC/s", "float32 GMAC/s"),
        [
            (one["threads"], f"{one['ram_bytes'] / 1e9:.1f}", f"{one['cache_bytes'] / 1e9:.1f}",
             _by_isa(one["integer_macs"]), _by_isa(one["float_macs"]))
            for one in result["limits"]
        ],
        note="Each in a loop that does nothing else; multiply-accumulates in registers.",
    )  # fmt: skip
    warn_of_noise(max(one["noise"] for one in result["limits"]))
    for name in dict.fromkeys(product["format"] for product in result["products"]):
        products = [product for product in result["products"] if product["format"] == name]
        typer.echo()
        console.table(
            f"{name} ({', '.join(products[0]['types'])})",
            ("outputs x columns", "rows", "threads", "ms", "GB/s", "GMAC/s", "of limit", "bound by"),
            [
                (f"{p['outputs']} x {p['columns']}", p["rows"], p["threads"], f"{p['ms']:.3f}",
                 f"{p['gb_per_second']:.1f}", f"{p['gmac_per_second']:.1f}", percent(p["share_of_limit"]), p["bound"])
                for p in products
            ],
        )  # fmt: skip


def _by_isa(rates: dict[str, float]) -> str:
    return ", ".join(f"{rate / 1e9:.0f} {isa}" for isa, rate in rates.items())
