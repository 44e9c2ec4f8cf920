"""What commands print: tables, one JSON object as the last line, sizes in words, progress on stderr.

Owns: the look of the output. Must not know: what is shown. rich leaves colours out when it writes to no terminal.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Everything that steers a terminal except newline and tab: a model must not clear the user's screen.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NARROW = 100  # columns for a table that goes to a file


def stdout() -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _NARROW
    return Console(file=sys.stdout, highlight=False, width=width, soft_wrap=False)


def stderr() -> Console:
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> None:
    """Prints a table; a column whose cells are all numbers (a digit first) stands to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [[str(cell) for cell in row] for row in rows]
    shown = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(cells) and all(row[index][:1].isdigit() or row[index] in ("", "-") for row in cells)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        shown.add_row(*(Text(cell) for cell in row))
    console = stdout()
    console.print(shown)
    if note:
        console.print(Text(note, style="dim"))


def facts(title: str, pairs: Iterable[tuple[str, object]]) -> None:
    """Prints names and values under a title; a value of None is left out."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            grid.add_row(Text("  " + name), Text(str(value)))
    console = stdout()
    console.print(Text(title, style="bold"))
    console.print(grid)


def print_json(value: Any) -> None:
    """One line on stdout, whatever the terminal's width."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")


def printable(text: str) -> str:
    """A model's text as a terminal may show it; as it is for a file or pipe."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n")) if sys.stdout.isatty() else text


def write(text: str) -> None:
    """Writes generated text at once."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def size(count: float) -> str:
    """Bytes in words: ``93.8 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def quantity(count: float) -> str:
    """A number of parameters in words: ``135 M``."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f}"


@contextlib.contextmanager
def steps(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar of ``total`` steps on stderr; call what it gives with the number done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextlib.contextmanager
def busy(label: str) -> Iterator[None]:
    """Says on stderr what is being done, as long as it is done; nothing where stderr is no terminal."""
    console = stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(label):
        yield


@contextlib.contextmanager
def downloads() -> Iterator[Callable[[str, int, int], None]]:
    """What the store reports as progress (label, bytes done, bytes in all; 0: not known), as bars on stderr."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def report(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bar.add_task(label, total=total or None)
                if not console.is_terminal:  # a log: one line a file
                    sys.stderr.write(f"{label}{f' ({size(total)})' if total else ''}\n")
            bar.update(tasks[label], completed=done, total=total or None)

        yield report
