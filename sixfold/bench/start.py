"""How long a server takes to start, with its plan there and without, and what two of them take in memory.

Owns: the homes without plans, the order of starts. Must not know: options; how results are shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sixfold import config
from sixfold.bench import memory
from sixfold.bench.client import Client, Request, Server
from sixfold.bench.load import Shape, draw, run
from sixfold.bench.server_process import Running, serving
from sixfold.errors import ConfigError

NAME = "bench"
NAMED = ("--served-model-name", NAME)
CLIENTS = 4  # of the load before memory is read


@contextlib.contextmanager
def home_without_plans() -> Iterator[Mapping[str, str]]:
    """The environment of a home with the same models and digests and no plan; it is beside the real one, on the same
    disk, and gone in the end."""
    real = config.home()
    with tempfile.TemporaryDirectory(dir=real.parent, prefix="sixfold-start-") as other:
        for entry in real.iterdir() if real.is_dir() else ():
            if entry.name != "plans":
                (Path(other) / entry.name).symlink_to(entry)
        yield {"SIXFOLD_HOME": other}


def starts(
    model: str, arguments: Sequence[str], shape: Shape, later: int, first: int,
    report: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Of both kinds of starts, the times from the start of the process to the first healthy answer, and to the end of
    a request for one token that is sent then."""
    with serving(model, arguments):  # there is a plan now, and the files are in the page cache
        pass
    report(1)
    found: dict[str, list[tuple[float, float]]] = {"with a plan": [], "first": []}
    for index in range(later):
        found["with a plan"].append(_start(model, arguments, shape, {}))
        report(2 + index)
    for index in range(first):
        with home_without_plans() as changes:
            found["first"].append(_start(model, arguments, shape, changes))
        report(2 + later + index)
    return [
        {"kind": kind, "ready_s": _summed(ready), "first_token_s": _summed(token)}
        for kind, (ready, token) in ((kind, list(zip(*times, strict=True))) for kind, times in found.items())
    ]


def _summed(seconds: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(seconds), "runs": list(seconds)}


def _start(model: str, arguments: Sequence[str], shape: Shape, changes: Mapping[str, str]) -> tuple[float, float]:
    with serving(model, arguments, changes) as server:
        return server.seconds, server.seconds + asyncio.run(_one_token(server, shape))


async def _one_token(server: Running, shape: Shape) -> float:
    client = Client(Server(server.url, NAME))
    outcome = await client.ask(Request(draw(shape, 1, 0)[0].prompt, 1))
    await client.close()
    _check(outcome.error)
    return outcome.total


def weigh(model: str, arguments: Sequence[str], shape: Shape, requests: int) -> dict[str, Any]:
    """Two servers of one model at the same time, each after a short load."""
    with serving(model, arguments) as one, serving(model, arguments) as two:
        for index, server in enumerate((one, two)):
            load = asyncio.run(run(Server(server.url, NAME), draw(shape, requests, index), CLIENTS))
            _check(next(iter(load["failure_reasons"]), None))
        return memory.together([memory.of(one.pid), memory.of(two.pid)])


def _check(error: str | None) -> None:
    if error is not None:
        raise ConfigError("The server does not answer as it should", cause=error, remedy="Check --token-ids")
