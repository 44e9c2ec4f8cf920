"""Runs Sixfold and its peers side by side and writes what came out to benchmarks/results/.

    run.py speed        decode and prefill of loaded engines, no HTTP
    run.py noisy        decode with and without another process that keeps a core busy
    run.py perplexity   how good each engine's weights are: --text FILE
    run.py serve        HTTP servers under load, by ``sixfold bench serve``

In one run the engines alternate case by case and repeat by repeat, each time with another one first, so that a slow
minute of the machine hits all of them; figures are medians over the repeats. Ratios in one run are what counts.

Owns: cases and the order of measurements. Must not know: how an engine is driven, or how results are written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engines
import report
from engines import CONTENDERS, HERE, REPOSITORY, Contender, Home
from processes import Driver, Foreign, PeerError, Server, busy_core

TOKEN_IDS = (300, 48_000)  # ordinary tokens of every vocabulary here
ROOM = 96  # tokens a sequence may have beyond the longest case's: warm-up, rounding
PORT = 18_300
NOISY = " noisy"
Condition = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class Case:
    """``batch`` prompts that begin together. ``prefill`` cases count prompt tokens, the others decoded ones."""

    batch: int
    prompt_tokens: int
    new_tokens: int

    @property
    def prefill(self) -> bool:
        return self.new_tokens == 1

    @property
    def length(self) -> int:
        return self.prompt_tokens + self.new_tokens


CASES = {
    "decode-1": Case(1, 128, 64),
    "decode-8": Case(8, 128, 64),
    "decode-32": Case(32, 128, 64),
    "prefill-512": Case(1, 512, 1),
    "prefill-4096": Case(1, 4096, 1),
    "long-8000": Case(1, 8000, 32),  # decode with a long context
}
DECODE = ("decode-1", "decode-8", "decode-32")


def prompts(case: str, repeat: int) -> list[list[int]]:
    """The same for every engine, others in every repeat: no cache of prefixes can help."""
    draw = random.Random(f"{case} {repeat}")
    shape = CASES[case]
    return [[draw.randrange(*TOKEN_IDS) for _ in range(shape.prompt_tokens)] for _ in range(shape.batch)]


def measure(driver: Driver, case: str, repeat: int) -> tuple[float, float]:
    """Tokens a second, and the share of the machine that others took meanwhile.

    A few tokens beforehand bring threads and caches back after the pause.
    """
    shape = CASES[case]
    driver.ask({"prompts": [[1000 + repeat] * 8], "new_tokens": 4})
    with Foreign(driver) as foreign:
        answer = driver.ask({"prompts": prompts(case, repeat), "new_tokens": shape.new_tokens})
    if shape.prefill:
        return shape.batch * shape.prompt_tokens / float(answer["prefill_seconds"]), foreign.share
    return float(answer["decode_tokens"]) / float(answer["decode_seconds"]), foreign.share


class Run:
    """One invocation: what it compares, and its results as they grow."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.home = Home(options.dir.expanduser().absolute())
        self.sixfold = options.sixfold.absolute()
        self.logs = self.home.root / "logs"

    def contenders(self, model: str) -> list[Contender]:
        wanted = self.options.engines.split(",") if self.options.engines else list(CONTENDERS)
        if unknown := set(wanted) - CONTENDERS.keys():
            raise SystemExit(f"no engines {', '.join(sorted(unknown))}: there are {', '.join(CONTENDERS)}")
        chosen = [CONTENDERS[name] for name in wanted if model in CONTENDERS[name].models]
        return [one for one in chosen if self._is_there(one, model)]

    def _is_there(self, contender: Contender, model: str) -> bool:
        path = self.home.model(model, contender.form)
        if not path.exists():
            say(f"left out: {contender.name}, there is no {path}")
        return path.exists()

    @contextlib.contextmanager
    def drivers(self, model: str, context: int) -> Iterator[dict[str, Driver]]:
        """All contenders loaded and paused. One that does not start is reported and left out."""
        drivers: dict[str, Driver] = {}
        try:
            for one in self.contenders(model):
                say(f"loading {one.name}")
                command = one.driver(self.home, model, self.sixfold, self.options.threads, context)
                with reported(one.name):
                    drivers[one.name] = Driver(
                        command, one.environment(self.options.threads), self.logs / f"{model}-{one.name}.log"
                    )
            yield drivers
        finally:
            for driver in drivers.values():
                driver.close()

    def result(self, mode: str) -> report.Result:
        return report.Result(
            mode=mode,
            command=shlex.join(["run.py", *sys.argv[1:]]),
            machine=report.machine(),
            versions=report.versions(self.home, self.sixfold),
            threads=self.options.threads,
            directory=self.options.results,
            label=self.options.label,
        )

    def speed(self) -> None:
        cases = self.options.cases.split(",") if self.options.cases else list(CASES)
        self._alternate("speed", cases, {"": contextlib.nullcontext})

    def noisy(self) -> None:
        cases = self.options.cases.split(",") if self.options.cases else list(DECODE)
        core = self.options.threads - 1  # one of those that the engines count on
        self._alternate("noisy", cases, {" quiet": contextlib.nullcontext, NOISY: lambda: busy_core(core)})

    def _alternate(self, mode: str, cases: list[str], conditions: dict[str, Condition]) -> None:
        result = self.result(mode)
        context = max(CASES[case].length for case in cases) + ROOM
        for model in self.options.models.split(","):
            with self.drivers(model, context) as drivers:
                for repeat in range(self.options.repeats):
                    for case in cases:
                        for name in rotated(list(drivers), repeat):
                            for suffix, condition in conditions.items():
                                with reported(name), drivers[name].running(), condition():
                                    rate, foreign = self._quiet(drivers[name], case, repeat, noise=suffix == NOISY)
                                    say(f"{model} {case}{suffix} #{repeat} {name}: {rate:.1f}, others {foreign:.0%}")
                                    result.add(model, case + suffix, name, rate, foreign)
                    result.write()
        result.print()

    def _quiet(self, driver: Driver, case: str, repeat: int, noise: bool) -> tuple[float, float]:
        """The first measurement that nobody disturbed, or of a few the one that was disturbed least."""
        tries = []
        for _ in range(1 if noise else self.options.tries):
            tries.append(measure(driver, case, repeat))
            if tries[-1][1] <= self.options.quiet:
                break
        return min(tries, key=lambda one: one[1])

    def perplexity(self) -> None:
        result = self.result("perplexity")
        for model in self.options.models.split(","):
            windows = self._windows(self.home.model(model, "file.gguf"))
            for one in self.contenders(model):
                command = one.driver(self.home, model, self.sixfold, self.options.threads, len(windows[0]) + ROOM)
                with reported(one.name):
                    driver = Driver(
                        command, one.environment(self.options.threads), self.logs / f"{model}-{one.name}.log"
                    )
                    try:
                        with driver.running():
                            answer = driver.ask({"windows": windows})
                    finally:
                        driver.close()
                    value = report.perplexity(answer["loss"], answer["tokens"])
                    say(f"{model} {one.name}: perplexity {value:.4f} over {answer['tokens']} tokens")
                    result.add(model, "perplexity", one.name, value)
                    result.write()
        result.print()

    def _windows(self, model: Path) -> list[list[int]]:
        """As Sixfold cuts them, which is as llama.cpp does; the token ids are given to every engine."""
        if self.options.text is None:
            raise SystemExit("perplexity needs a text: --text FILE")
        command = [self.sixfold, HERE / "drivers" / "windows.py", model, self.options.text, "512"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        windows: list[list[int]] = json.loads(output)
        return windows[: self.options.max_windows]

    def serve(self) -> None:
        """Servers run all the time and are paused like drivers."""
        result = self.result("serve")
        counts = [int(count) for count in self.options.clients.split(",")]
        for model in self.options.models.split(","):
            with self.servers(model, max(counts)) as servers:
                for repeat in range(self.options.repeats):
                    for clients in counts:
                        for name in rotated(list(servers), repeat):
                            with reported(name), servers[name].running():
                                load = self._load(servers[name].url, clients, repeat)
                                for case, value in figures(load, clients).items():
                                    result.add(model, case, name, value)
                                say(f"{model} {clients} clients #{repeat} {name}: {load}")
                    result.write()
        result.print()

    @contextlib.contextmanager
    def servers(self, model: str, clients: int) -> Iterator[dict[str, Server]]:
        servers: dict[str, Server] = {}
        try:
            for number, one in enumerate(self.contenders(model)):
                say(f"starting the server of {one.name}")
                port = PORT + number
                command = one.server(self.home, model, self.sixfold, self.options.threads, clients, port)
                environment = {**one.environment(self.options.threads), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
                log = self.logs / f"serve-{model}-{one.name}.log"
                with reported(one.name):
                    servers[one.name] = Server(command, environment, log, port)
            yield servers
        finally:
            for server in servers.values():
                server.close()

    def _load(self, url: str, clients: int, seed: int) -> dict[str, Any]:
        command = [
            self.options.generator or self.sixfold, "-m", "sixfold", "bench", "serve", "--url", url, "--model", "bench",
            "--clients", str(clients), "--requests", str(max(8, 3 * clients)),
            "--prompt-tokens", "32,1024", "--new-tokens", "16,256", "--seed", str(seed), "--json",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise PeerError(f"the load generator failed: {done.stderr.strip()[-500:]}")
        answer: dict[str, Any] = json.loads(done.stdout)
        for wrong in ("failures", "wrong_lengths"):
            if answer.get(wrong):
                raise PeerError(f"{answer[wrong]} {wrong}: {answer.get('failure_reasons')}")
        return answer


def figures(load: dict[str, Any], clients: int) -> dict[str, float]:
    """What is kept of the load generator's answer."""
    found = {f"tokens/s @{clients}": load["output_tokens_per_second"]}
    for key, name in (("ttft_ms", "TTFT"), ("inter_token_ms", "inter-token")):
        for part in ("p50", "p99"):
            found[f"{name} {part} ms @{clients}"] = load[key][part]
    return found


def rotated(names: list[str], by: int) -> list[str]:
    by %= max(len(names), 1)
    return names[by:] + names[:by]


@contextlib.contextmanager
def reported(name: str) -> Iterator[None]:
    """One peer's failure is its own: it is said, and the others go on."""
    try:
        yield
    except (PeerError, BrokenPipeError) as error:
        say(f"{name} FAILED: {error}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("speed", "noisy", "perplexity", "serve"))
    parser.add_argument("--dir", type=Path, default=engines.default_home(), help="where setup.py put things")
    parser.add_argument("--sixfold", type=Path, default=REPOSITORY / ".venv/bin/python", help="Sixfold's Python")
    parser.add_argument("--engines", help=f"of {','.join(CONTENDERS)}; default all that are set up")
    parser.add_argument("--models", default="smollm2", help=f"of {','.join(engines.MODELS)}")
    parser.add_argument("--cases", help=f"of {','.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quiet", type=float, default=0.03, help="measure again if others took more of the machine")
    parser.add_argument("--tries", type=int, default=3, help="measure so many times at most for a quiet one")
    parser.add_argument("--text", type=Path, help="perplexity: a text in UTF-8")
    parser.add_argument("--max-windows", type=int, help="perplexity: the first so many windows of 512 tokens")
    parser.add_argument("--clients", default="1,8,32,64", help="serve: numbers of clients")
    parser.add_argument("--generator", type=Path, help="serve: a Python whose Sixfold asks; default --sixfold")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--label", default="peers", help="first part of the results' file names")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that engines with children are ended, too
    getattr(Run(options), options.mode)()


if __name__ == "__main__":
    main()
