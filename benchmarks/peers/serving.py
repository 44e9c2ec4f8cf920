"""The mode serve: HTTP servers under the same load, one at a time while the others are stopped.

Owns: the load, and how long all of it may take. Must not know: how servers are started, or how results are written.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

from engines import Load
from processes import Foreign, PeerError, Server
from session import Session, rotated, say

PROMPT, ANSWER = (32, 1024), (16, 256)  # tokens, drawn evenly
CONTEXT = 1536  # what a request has room for: the longest prompt and answer, and what llama-server rounds up to
TOKENS_A_SECOND = 150  # a guess for the estimate before anything is measured
REQUEST_SECONDS = 600


def requests_for(clients: int) -> int:
    """Two rounds of all clients: one that begins at once and one that finds the server busy."""
    return max(8, 2 * clients)


@dataclass
class Budget:
    """How long the rest takes, from what the engines took so far. ``work``: output tokens of all measurements."""

    work: float
    done: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def add(self, tokens: float) -> None:
        self.done += tokens

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        """Seconds."""
        rate = self.done / self.elapsed if self.done else TOKENS_A_SECOND
        return max(self.work - self.done, 0.0) / rate


def serve(session: Session) -> None:
    """Every repeat asks every server with every number of clients; no measurement begins after ``--minutes``."""
    options, result = session.options, session.result
    counts = [int(count) for count in options.clients.split(",")]
    mean = sum(ANSWER) / 2
    for model in session.models:
        with session.servers(model, Load(max(counts), CONTEXT)) as servers:
            work = options.repeats * len(servers) * mean * sum(map(requests_for, counts))
            budget = Budget(work)
            say(f"about {budget.left / 60:.0f} minutes, if servers give {TOKENS_A_SECOND} tokens/s")
            for repeat in range(options.repeats):
                for clients in counts:
                    for name in rotated(list(servers), repeat):
                        if budget.elapsed > 60 * options.minutes:
                            session.leave_out(f"{name} @{clients} #{repeat}", f"{options.minutes} minutes were over")
                            continue
                        with session.reported(name):
                            measure(session, model, name, servers[name], clients, repeat)
                        if name in result.left_out:
                            servers.pop(name).close()
                        budget.add(mean * requests_for(clients))
                    say(f"{budget.elapsed / 60:.0f} minutes gone, about {budget.left / 60:.0f} to go")
                result.write()
    result.write()
    result.print()


def measure(session: Session, model: str, name: str, server: Server, clients: int, repeat: int) -> None:
    with server.running(), Foreign(server) as foreign:
        load = ask(session, server.url, clients, repeat)
    for case, value in figures(load, clients).items():
        session.result.add(model, case, name, value, foreign.share)
    say(f"{model} {clients} clients #{repeat} {name}: {line(load)}, others {foreign.share:.0%}")


def ask(session: Session, url: str, clients: int, seed: int) -> dict[str, Any]:
    """One load, by ``sixfold bench serve``. An answer that fails or is too short makes the measurement fail."""
    command = [
        session.options.generator or session.sixfold, "-m", "sixfold", "bench", "serve", "--url", url,
        "--model", "bench", "--clients", clients, "--requests", requests_for(clients),
        "--prompt-tokens", "{},{}".format(*PROMPT), "--new-tokens", "{},{}".format(*ANSWER),
        "--seed", seed, "--timeout", REQUEST_SECONDS, "--json",
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise PeerError(f"the load generator failed: {done.stderr.strip()[-500:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    for wrong in ("failures", "wrong_lengths"):
        if answer.get(wrong):
            raise PeerError(f"{answer[wrong]} {wrong} with {clients} clients: {answer.get('failure_reasons')}")
    return answer


NAMES = {"ttft_ms": "TTFT", "inter_token_ms": "inter-token", "time_per_output_token_ms": "per token"}


def figures(load: dict[str, Any], clients: int) -> dict[str, float]:
    """What is kept of the load generator's answer."""
    found = {f"tokens/s @{clients}": load["output_tokens_per_second"]}
    for key, name in NAMES.items():
        for part in ("p50", "p99"):
            found[f"{name} {part} ms @{clients}"] = load[key][part]
    return found


def line(load: dict[str, Any]) -> str:
    first, later = load["ttft_ms"], load["inter_token_ms"]
    return (
        f"{load['output_tokens_per_second']:.1f} tokens/s, TTFT {first['p50']:.0f} / {first['p99']:.0f} ms, "
        f"inter-token {later['p50']:.1f} / {later['p99']:.1f} ms, {load['seconds']:.0f} s"
    )
