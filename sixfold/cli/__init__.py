"""The command line: ``sixfold serve chat run pull list rm show doctor eval bench``.

Owns: the entry point. Must not know: the commands.
"""

from __future__ import annotations

import os
import sys

from sixfold.cli.application import app

__all__ = ["app", "main"]


def main() -> None:
    """The console entry ``sixfold``."""
    try:
        app()
    except KeyboardInterrupt:  # before or after a command ran
        os._exit(130)
    except BrokenPipeError:
        sys.exit(141)
