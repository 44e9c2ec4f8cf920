"""``sixfold pull``, ``list`` and ``rm``: the models on this machine.

Owns: their options and output. Must not know: where models lie.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from sixfold.cli import console
from sixfold.cli.options import AcceptLicense, Json, Model


def pull(model: Model, accept_license: AcceptLicense = False) -> None:
    """Download a model; an interrupted download goes on where it stopped."""
    from sixfold.cli.fetch import fetch

    found = fetch(model, accept_license=accept_license)
    typer.echo(f"{found.name} is at {found.path}")


def list_(json: Json = False) -> None:
    """List the models on this machine, and those that can be pulled by a short name."""
    from sixfold import config, store

    present = store.list_models()
    names = {model.name for model in present}
    absent = [entry for entry in store.short_names() if entry.name not in names]
    if json:
        console.print_json(
            {
                "home": config.home(),
                "models": [
                    {"name": m.name, "size": m.size, "license": m.license, "source": m.source, "path": m.path}
                    for m in present
                ],
                "available": [
                    {"name": e.name, "title": e.title, "size": e.size, "license": e.license.id} for e in absent
                ],
            }
        )
        return
    rows = [(m.name, console.size(m.size), m.license or "unknown", m.source) for m in present]
    if rows:
        console.table(f"Models in {config.home()}", ("name", "size", "licence", "source"), rows)
    else:
        typer.echo(f"No models in {config.home()} yet.")
    if absent:
        offers = [(e.name, console.size(e.size), e.license.id, e.title) for e in absent]
        console.table("Can be pulled", ("name", "size", "licence", "what it is"), offers)


def rm(
    model: Model,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a pulled model, and the plan compiled from it, from this machine."""
    from sixfold import compile, store
    from sixfold.errors import SixfoldError
    from sixfold.weights.model_file import open_model

    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("nobody can be asked here; add --yes", param_hint="--yes")
        typer.confirm(f"Delete {model}?", abort=True)
    digest = None
    # absent or damaged: what there is of it is removed all the same
    with contextlib.suppress(SixfoldError), open_model(store.resolve(model).path) as found:
        digest = found.digest
    freed = store.remove(model)
    if digest is not None:
        compile.forget(digest)
    typer.echo(f"Removed {model}; {console.size(freed)} are free again.")
