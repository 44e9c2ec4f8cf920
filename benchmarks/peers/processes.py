"""The processes of a comparison: drivers, servers, and a disturber. All but the one that is measured are stopped.

Idle engines are not idle: thread pools spin before they sleep, servers poll. So each runs in a process group of its
own, which is sent SIGSTOP whenever another one is measured. That costs nothing and needs no engine's cooperation.

Owns: starting, pausing, ending. Must not know: cases, numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1


class PeerError(Exception):
    """A peer did not start or answer; the message names its log."""


def _die_with_parent() -> None:
    """In the child: a killed run leaves no engine behind, not even a stopped one. Linux."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _stat(process: Path) -> list[str]:
    """The fields of /proc/N/stat after the name."""
    return (process / "stat").read_text().rpartition(")")[2].split()


class Paused:
    """A process group that runs only inside ``with process.running():``."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.command = command
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if self.answers else stderr,
                stderr=stderr,
                env={**os.environ, **environment},
                start_new_session=True,
                preexec_fn=_die_with_parent,
                text=True,
            )

    answers = False  # whether stdout is read

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """Ends the whole group. A stopped process takes no SIGTERM, and nothing here is worth a grace period."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def wide_threads(self, seconds: float) -> int:
        """Threads that used 512-bit registers within the last so many seconds, as far as the system noticed: it looks
        when it takes a thread off a core."""
        count = 0
        for process in self._processes():
            for status in process.glob("task/*/arch_status"):
                with contextlib.suppress(OSError):  # a thread that ended meanwhile
                    elapsed = int(status.read_text().split()[-1])  # ms; -1: never
                    count += 0 <= elapsed < 1000 * seconds
        return count

    def cpu_seconds(self) -> float:
        """Used so far by the processes of the group, with the children they have waited for."""
        return sum(sum(map(int, _stat(one)[11:15])) for one in self._processes()) / os.sysconf("SC_CLK_TCK")

    def _processes(self) -> list[Path]:
        """Those of the group, in /proc."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # one that ended meanwhile
                if int(_stat(process)[2]) == self._process.pid:
                    found.append(process)
        return found


class Driver(Paused):
    """An engine that answers the commands of drivers/protocol.py."""

    answers = True

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        super().__init__(command, environment, log)
        try:
            self.ready = self._answer()
        except BaseException:  # the run's end as well
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Only inside :meth:`running`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise PeerError(f"{answer['error']} (its log: {self.log})")
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"{self.command[0]} ended with {self._process.wait()}; its log: {self.log}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Server(Paused):
    """An OpenAI-compatible HTTP server on this machine."""

    def __init__(
        self, command: list[str], environment: Mapping[str, str], log: Path, port: int, patience: float
    ) -> None:
        """``patience``: seconds that a start may take; the first one of some compiles for minutes."""
        super().__init__(command, environment, log)
        self.url = f"http://127.0.0.1:{port}"
        try:
            self._wait(time.monotonic() + patience)
        except BaseException:  # the run's end as well
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def _wait(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with (
                contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
                urllib.request.urlopen(f"{self.url}/health", timeout=5),
            ):
                return
            time.sleep(0.5)
        raise PeerError(f"{self.command[0]} does not serve; its log: {self.log}")


class Foreign:
    """How much of the machine others used inside ``with Foreign(process) as foreign``: ``foreign.share``, 0 to 1."""

    def __init__(self, process: Paused) -> None:
        self._process = process
        self.share = 0.0

    def __enter__(self) -> Foreign:
        self._began = (time.monotonic(), _machine_cpu_seconds(), self._own_cpu_seconds())
        return self

    def __exit__(self, *_: object) -> None:
        began, machine, own = self._began
        used = _machine_cpu_seconds() - machine - (self._own_cpu_seconds() - own)
        self.share = max(used / ((time.monotonic() - began) * (os.cpu_count() or 1)), 0.0)

    def _own_cpu_seconds(self) -> float:
        """The process's, and what this one and its commands, as a load generator, used."""
        return self._process.cpu_seconds() + sum(os.times()[:4])


def _machine_cpu_seconds() -> float:
    """Busy time of all cores; time that the host gave to other machines counts as busy."""
    user, nice, system, _, _, interrupt, soft, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def busy_core(core: int) -> Iterator[None]:
    """Another program that keeps one core busy."""
    spin = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", spin])
    try:
        time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()
