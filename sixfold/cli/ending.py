"""How a command ends when it does not end well.

Owns: exit codes (1: a SixfoldError, 130: Ctrl-C, 141: whoever read our output has gone; 2, for usage, is typer's).
Must not know: any command.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from sixfold.errors import SixfoldError


class Group(TyperGroup):
    """The application's root: every command runs inside :meth:`invoke`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe shows here, not in the interpreter's last breath
            return result
        except SixfoldError as error:
            report(error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            _close_stdout()
            raise typer.Exit(141) from None


def report(error: SixfoldError) -> None:
    """The message on stderr, red on a terminal, without a traceback."""
    typer.secho(f"Error: {error.message}", fg=typer.colors.RED, err=True, color=colourful())


def colourful() -> bool:
    from sixfold.cli.console import stderr

    return stderr().color_system is not None


def _close_stdout() -> None:
    """Lets what is still buffered go nowhere, so that the flush at exit does not complain."""
    with contextlib.suppress(OSError, ValueError):  # no file behind it (a test's stdout)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
