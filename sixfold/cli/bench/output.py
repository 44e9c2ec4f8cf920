"""What all benchmarks have in common: the circumstances of a run, its JSON, and parsers of ranges.

Owns: the frame of a result. Must not know: any benchmark.
"""

from __future__ import annotations

import datetime
import json
import platform
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sixfold.cli import console
from sixfold.cli.options import numbers
from sixfold.errors import ConfigError

NOISY = 1.3  # limits of a quiet machine agree better than that

Output = Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Also write the JSON into this file.")]


def circumstances(**known: Any) -> dict[str, Any]:
    """Without these a number means nothing later. ``known``: the model, threads and the like."""
    from sixfold.cli.machine import processor

    cpu = processor()
    return {
        **{name: from_home(value) if isinstance(value, str) else value for name, value in known.items()},
        "machine": {"processor": cpu.model, "cores": cpu.cores, "system": platform.platform()},
        "command": from_home(shlex.join(["sixfold", *sys.argv[1:]])),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def from_home(text: str) -> str:
    """Paths below the home directory begin with ~: results are published."""
    return text.replace(f"{Path.home()}/", "~/")


def finish(result: dict[str, Any], output: Path | None, as_json: bool) -> bool:
    """Writes the file and prints the JSON if they were asked for; true if tables are to be printed instead."""
    if output is not None:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"Cannot write {output}", cause=str(error), remedy="Name another --output") from None
    if as_json:
        console.print_json(result)
        return False
    machine = result["machine"]
    with_what = [f"{result['threads']} threads" if result.get("threads") else None, result.get("isa")]
    console.facts(
        f"{result['model']} on {machine['processor']}",
        [
            ("machine", f"{machine['cores']} cores, {machine['system']}"),
            ("run with", ", ".join(part for part in with_what if part) or None),
            ("command", result["command"]),
            ("date", result["date"]),
        ],
    )
    typer.echo()
    return True


def number_range(text: str, option: str) -> tuple[int, int]:
    """``16,128`` or ``16``: the least and the most."""
    values = numbers(text)
    if len(values) > 2 or values[0] > values[-1]:
        raise typer.BadParameter(f"{text!r} is no range; write 16,128", param_hint=option)
    return values[0], values[-1]


def warn_of_noise(noise: float) -> None:
    """Says when the measured limits, and so all shares of them, are not to be trusted."""
    if noise > NOISY:
        typer.echo(f"This machine was busy with something else: limits varied by up to {noise:.1f} x between rounds.")


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def rate(value: float) -> str:
    """A rate that may be nothing."""
    return f"{value:.1f}" if value else "-"
