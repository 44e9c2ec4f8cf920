"""Prints the windows of token ids that ``sixfold eval perplexity`` scores, as JSON. Run by Sixfold's Python.

Usage: windows.py MODEL TEXT CONTEXT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sixfold.engine.tokenizer import Tokenizer
from sixfold.evaluation.perplexity import windows_of
from sixfold.weights.model_file import open_model


def main(model: str, text: str, context: int) -> None:
    opened = open_model(Path(model))
    try:
        tokenizer = Tokenizer.from_model(opened)
    finally:
        opened.close()
    print(json.dumps(windows_of(tokenizer, Path(text).read_text(encoding="utf-8"), context).tolist()))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
