"""What all modes of run.py share: the contenders that are there, started and paused, and the results as they grow.

Owns: who takes part, and what happens to one that fails. Must not know: cases, or what is asked of an engine.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import report
from engines import CONTENDERS, NATIVE, Contender, Home, Load, Settings
from processes import Driver, PeerError, Server

PORT = 18_300


class Session:
    """One invocation."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.home = Home(options.dir.expanduser().absolute())
        self.sixfold = options.sixfold.absolute()
        self.settings = Settings(options.threads, options.isa)
        self.logs = self.home.root / "logs"
        self.models: list[str] = options.models.split(",")
        self.result = report.Result(
            mode=options.mode,
            command=shlex.join(["run.py", *sys.argv[1:]]),
            machine=report.machine(),
            versions=report.versions(self.home, self.sixfold),
            threads=options.threads,
            directory=options.results,
            label=options.label,
        )

    def contenders(self, model: str) -> list[Contender]:
        wanted = self.options.engines.split(",") if self.options.engines else list(CONTENDERS)
        if unknown := set(wanted) - CONTENDERS.keys():
            raise SystemExit(f"no engines {', '.join(sorted(unknown))}: there are {', '.join(CONTENDERS)}")
        chosen = [CONTENDERS[name] for name in wanted if model in CONTENDERS[name].models]
        return [one for one in chosen if self._is_there(one, model) and self._can_be_limited(one)]

    def _is_there(self, contender: Contender, model: str) -> bool:
        path = self.home.model(model, contender.form)
        if not path.exists():
            self.leave_out(contender.name, f"there is no {path}")
        return path.exists()

    def _can_be_limited(self, contender: Contender) -> bool:
        can = self.settings.isa == NATIVE or contender.limitable
        if not can:
            self.leave_out(contender.name, f"it can not be limited to {self.settings.isa}")
        return can

    @contextlib.contextmanager
    def drivers(self, model: str, context: int) -> Iterator[dict[str, Driver]]:
        """All contenders loaded and paused. One that does not start is reported and left out."""
        drivers: dict[str, Driver] = {}
        try:
            for one in self.contenders(model):
                say(f"loading {one.name}")
                with self.reported(one.name):
                    drivers[one.name] = self.driver(one, model, context)
            yield drivers
        finally:
            for driver in drivers.values():
                driver.close()

    def driver(self, one: Contender, model: str, context: int) -> Driver:
        command = one.driver(self.home, model, self.sixfold, self.settings, context)
        return Driver(command, one.environment(self.settings), self.logs / f"{model}-{one.name}.log")

    @contextlib.contextmanager
    def servers(self, model: str, load: Load) -> Iterator[dict[str, Server]]:
        """As :meth:`drivers`."""
        servers: dict[str, Server] = {}
        try:
            for number, one in enumerate(self.contenders(model)):
                say(f"starting the server of {one.name}")
                port = PORT + number
                command = one.server(self.home, model, self.sixfold, self.settings, load, port)
                environment = one.server_environment(self.settings)
                log = self.logs / f"serve-{model}-{one.name}.log"
                with self.reported(one.name):
                    servers[one.name] = Server(command, environment, log, port, self.options.start_seconds)
            yield servers
        finally:
            for server in servers.values():
                server.close()

    @contextlib.contextmanager
    def reported(self, name: str) -> Iterator[None]:
        """One peer's failure is its own: it is said and written down, and the others go on."""
        try:
            yield
        except (PeerError, BrokenPipeError) as error:
            self.leave_out(name, str(error) or type(error).__name__)

    def leave_out(self, name: str, why: str) -> None:
        say(f"{name} LEFT OUT: {why}")
        published = " ".join(why.split()).replace(f"{Path.home()}/", "~/")
        self.result.left_out[name] = published


def rotated(names: list[str], by: int) -> list[str]:
    by %= max(len(names), 1)
    return names[by:] + names[:by]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
