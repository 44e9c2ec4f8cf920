"""``sixfold eval``: how good a model is.

Owns: options and output of the evaluations. Must not know: how anything is measured.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sixfold.cli import console
from sixfold.cli.options import AcceptLicense, Isa, Json, KVFormat, Model, Threads
from sixfold.errors import InvalidRequestError

if TYPE_CHECKING:
    from sixfold.engine.tokenizer import Tokenizer
    from sixfold.evaluation.perplexity import WindowScorer

WHATEVER_IT_TAKES = 1 << 62  # bytes: memory for the one window is taken as it is touched

app = typer.Typer(help="Measure how good a model is.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Measure how good a model is."""


@app.command()
def perplexity(
    model: Model,
    text: Annotated[Path, typer.Option(metavar="FILE", help="A text in UTF-8.")],
    ctx: Annotated[int, typer.Option(min=4, help="Tokens in a window.")] = 512,
    max_windows: Annotated[int | None, typer.Option(min=1, help="Score only the first so many windows.")] = None,
    threads: Threads = None,
    isa: Isa = None,
    kv_format: KVFormat = None,
    reference: Annotated[bool, typer.Option("--reference", help="Run the numpy reference instead; slow.")] = False,
    accept_license: AcceptLicense = False,
    json: Json = False,
) -> None:
    """Perplexity by llama.cpp's definition: the second half of consecutive windows."""
    from sixfold.cli.fetch import fetch
    from sixfold.evaluation.perplexity import perplexity as measure
    from sixfold.evaluation.perplexity import windows_of

    content = read_text(text)
    path = fetch(model, accept_license=accept_license).path
    with console.busy("Loading"):
        tokenizer, scorer = scorer_of(path, ctx, {"threads": threads, "isa": isa, "kv_format": kv_format}, reference)
    with console.busy("Tokenising"):
        windows = windows_of(tokenizer, content, ctx)[:max_windows]
    began = time.monotonic()
    with console.steps("Perplexity", len(windows)) as report:
        result = measure(windows, scorer, lambda done, so_far: report(done))
    seconds = time.monotonic() - began
    if json:
        console.print_json(
            {"ppl": result.perplexity, "tokens": result.tokens, "ppl_error": result.error, "windows": result.windows,
             "ctx": result.context, "kv_format": kv_format, "seconds": round(seconds, 2), "model": model, "text": text}
        )  # fmt: skip
        return
    typer.echo(
        f"Perplexity {result.perplexity:.4f} +/- {result.error:.4f} over {result.tokens} tokens "
        f"({result.windows} windows of {result.context}, {seconds:.1f} s)"
    )


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read", cause=error.strerror or str(error), param="text") from None
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{path} is not UTF-8 at byte {error.start}", remedy="Convert it to UTF-8", param="text"
        ) from None


def scorer_of(path: Path, context: int, flags: Mapping[str, Any], reference: bool) -> tuple[Tokenizer, WindowScorer]:
    from sixfold import config
    from sixfold.compile.plan import build
    from sixfold.engine.loader import open_executor
    from sixfold.engine.tokenizer import Tokenizer
    from sixfold.evaluation.perplexity import NativeScorer, ReferenceScorer
    from sixfold.models.network import load_network
    from sixfold.runtime.reference import ReferenceModel
    from sixfold.weights.model_file import open_model

    settings = config.load(config.EngineConfig, "engine", flags)
    model = open_model(path)
    tokenizer = Tokenizer.from_model(model)
    if reference:
        network = load_network(model)  # reads the file as it goes, so it stays open
        _check_context(context, network.hyper.context)
        return tokenizer, ReferenceScorer(ReferenceModel(network))
    plan = build(model, cache=settings.plan_cache)
    model.close()
    _check_context(context, plan.context)
    chunk = min(context, settings.max_num_batched_tokens)
    alone = dataclasses.replace(settings, max_num_seqs=1, max_num_batched_tokens=chunk, kv_memory=WHATEVER_IT_TAKES)
    return tokenizer, NativeScorer(open_executor(plan, tokenizer, alone, context), chunk)


def _check_context(context: int, trained: int) -> None:
    if context > trained:
        raise InvalidRequestError(
            f"Windows of {context} tokens are too long", cause=f"the model was trained for {trained}",
            remedy=f"Use --ctx {trained} or less", param="ctx",
        )  # fmt: skip
