"""Runs Sixfold and its peers side by side and writes what came out to benchmarks/results/.

    run.py speed        decode and prefill of loaded engines, no HTTP
    run.py noisy        decode with and without another process that keeps a core busy
    run.py perplexity   how good each engine's weights are: --text FILE
    run.py serve        HTTP servers under load, by ``sixfold bench serve``

``--isa avx2`` limits all engines to what a CPU without AVX-512 has.

In one run the engines alternate case by case and repeat by repeat, each time with another one first, so that a slow
minute of the machine hits all of them; figures are medians over the repeats. Ratios in one run are what counts.

Owns: cases and the order of measurements. Must not know: how an engine is driven, or how results are written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engines
import report
from engines import CONTENDERS, HERE, REPOSITORY
from processes import Driver, Foreign, busy_core
from serving import serve
from session import Session, rotated, say

TOKEN_IDS = (300, 48_000)  # ordinary tokens of every vocabulary here
ROOM = 96  # tokens a sequence may have beyond the longest case's: warm-up, rounding
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


def speed(session: Session) -> None:
    alternate(session, CASES, {"": contextlib.nullcontext})


def noisy(session: Session) -> None:
    core = session.options.threads - 1  # one of those that the engines count on
    alternate(session, DECODE, {" quiet": contextlib.nullcontext, NOISY: lambda: busy_core(core)})


def alternate(session: Session, usual: Iterable[str], conditions: dict[str, Condition]) -> None:
    options, result = session.options, session.result
    cases = options.cases.split(",") if options.cases else list(usual)
    context = max(CASES[case].length for case in cases) + ROOM
    for model in session.models:
        with session.drivers(model, context) as drivers:
            for repeat in range(options.repeats):
                for case in cases:
                    for name in rotated(list(drivers), repeat):
                        for suffix, condition in conditions.items():
                            with session.reported(name), drivers[name].running(), condition():
                                began = time.monotonic()
                                rate, foreign = quiet(session, drivers[name], case, repeat, noise=suffix == NOISY)
                                if options.isa == "avx2":
                                    result.wide(name, drivers[name].wide_threads(time.monotonic() - began))
                                say(f"{model} {case}{suffix} #{repeat} {name}: {rate:.1f}, others {foreign:.0%}")
                                result.add(model, case + suffix, name, rate, foreign)
                result.write()
    result.print()


def quiet(session: Session, driver: Driver, case: str, repeat: int, noise: bool) -> tuple[float, float]:
    """The first measurement that nobody disturbed, or of a few the one that was disturbed least."""
    tries = []
    for _ in range(1 if noise else session.options.tries):
        tries.append(measure(driver, case, repeat))
        if tries[-1][1] <= session.options.quiet:
            break
    return min(tries, key=lambda one: one[1])


def perplexity(session: Session) -> None:
    result = session.result
    for model in session.models:
        windows = windows_of(session, session.home.model(model, "file.gguf"))
        for one in session.contenders(model):
            with session.reported(one.name):
                driver = session.driver(one, model, len(windows[0]) + ROOM)
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


def windows_of(session: Session, model: Path) -> list[list[int]]:
    """As Sixfold cuts them, which is as llama.cpp does; the token ids are given to every engine."""
    if session.options.text is None:
        raise SystemExit("perplexity needs a text: --text FILE")
    command = [session.sixfold, HERE / "drivers" / "windows.py", model, session.options.text, "512"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    windows: list[list[int]] = json.loads(output)
    return windows[: session.options.max_windows]


MODES: dict[str, Callable[[Session], None]] = {mode.__name__: mode for mode in (speed, noisy, perplexity, serve)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--dir", type=Path, default=engines.default_home(), help="where setup.py put things")
    parser.add_argument("--sixfold", type=Path, default=REPOSITORY / ".venv/bin/python", help="Sixfold's Python")
    parser.add_argument("--engines", help=f"of {','.join(CONTENDERS)}; default all that are set up")
    parser.add_argument("--models", default="smollm2", help=f"of {','.join(engines.MODELS)}")
    parser.add_argument("--cases", help=f"of {','.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", choices=engines.ISAS, default=engines.NATIVE, help="the widest instructions allowed")
    parser.add_argument("--quiet", type=float, default=0.03, help="measure again if others took more of the machine")
    parser.add_argument("--tries", type=int, default=3, help="measure so many times at most for a quiet one")
    parser.add_argument("--text", type=Path, help="perplexity: a text in UTF-8")
    parser.add_argument("--max-windows", type=int, help="perplexity: the first so many windows of 512 tokens")
    parser.add_argument("--clients", default="1,8,32,64", help="serve: numbers of clients")
    parser.add_argument("--minutes", type=float, default=120, help="serve: nothing more is begun after that")
    parser.add_argument("--start-seconds", type=float, default=1200, help="serve: how long a server may take to start")
    parser.add_argument("--generator", type=Path, help="serve: a Python whose Sixfold asks; default --sixfold")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--label", default="peers", help="first part of the results' file names")
    options = parser.parse_args()
    if options.isa != engines.NATIVE and options.mode == "serve":
        parser.error("--isa is for engines without HTTP")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that engines with children are ended, too
    MODES[options.mode](Session(options))


if __name__ == "__main__":
    main()
