"""A model that is on this machine, after a download and a question about its licence if need be.

Owns: the progress bar and the question. Must not know: how a download goes.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import typer

from sixfold.cli import console
from sixfold.errors import DownloadError, ModelNotFoundError

if TYPE_CHECKING:
    from sixfold.store import ResolvedModel


def fetch(name: str, *, accept_license: bool = False, pull: bool = True) -> ResolvedModel:
    """The model called ``name``; without ``pull`` only if it is here. Raises what the store raises."""
    from sixfold import store

    if not pull:
        return store.resolve(name)
    with contextlib.suppress(DownloadError, ModelNotFoundError):  # absent, damaged or unknown: the pull says which
        return store.resolve(name)
    accepted = accept_license or _asked(name)  # before the bar is drawn
    with console.downloads() as report:
        return store.pull(name, report, accepted)


def _asked(name: str) -> bool:
    """What the user answers where a licence has to be accepted; no where nobody can be asked."""
    from sixfold import store

    licence = next((entry.license for entry in store.short_names() if entry.name == name), None)
    if licence is None or not licence.accept or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    typer.echo(f"{licence.title}: {licence.url}\n{licence.notice.strip()}\n", err=True)
    return typer.confirm("Do you accept these terms?", err=True)
