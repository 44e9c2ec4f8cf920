"""A model loaded to be timed, from options. Owns: the way from flags to a :class:`Bench`. Must not know: loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sixfold.cli import console
from sixfold.cli.bench.output import circumstances

if TYPE_CHECKING:
    from sixfold.cli.timing import Bench
    from sixfold.config import EngineConfig


def load(model: str, accept_license: bool, **flags: Any) -> Bench:
    """``flags``: fields of the engine's settings; None was not given.

    Without a prefix cache: these benchmarks ask the same prompts again and again, and mean to compute them.
    """
    from sixfold import config
    from sixfold.cli.fetch import fetch
    from sixfold.cli.timing import Bench

    settings: EngineConfig = config.load(
        config.EngineConfig, "engine", {"model": model, "prefix_cache": False, **flags}
    )
    fetch(settings.model, accept_license=accept_license)
    with console.busy(f"Loading {settings.model}"):
        return Bench(settings)


def of(bench: Bench) -> dict[str, Any]:
    """The circumstances of a loaded model."""
    return circumstances(model=bench.model, threads=bench.threads, isa=bench.isa)
