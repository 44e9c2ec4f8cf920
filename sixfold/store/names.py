"""What a model name means: a path, ``hf:org/repo[:file]``, or a short name.

Owns: the grammar of names and the words for a name that fits none. Must not know: what is downloaded and how.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sixfold.errors import ModelNotFoundError
from sixfold.store import registry
from sixfold.store.registry import Entry

_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
_HUB = re.compile(rf"hf:({_SEGMENT}/{_SEGMENT})(?::(.+))?", re.ASCII)
HUB_FORM = "hf:org/repo or hf:org/repo:file.gguf"


@dataclass(frozen=True)
class HubName:
    """``hf:repo[:selector]``; the selector is a file in the repository or a quantisation tag such as Q4_K_M."""

    name: str
    repo: str
    selector: str | None


def parse(name: str) -> Path | HubName | Entry:
    """What ``name`` stands for; looks at the file system only to tell a path from a misspelt short name.

    A short name wins over a file of the same name in the working directory, so that what ``smollm2`` means does not
    depend on where one stands; ``./smollm2`` is the file. Raises :class:`ModelNotFoundError`.
    """
    if name.startswith("hf:"):
        return _hub(name)
    if entry := registry.entries().get(name):
        return entry
    if not name.strip() or "\0" in name:
        raise ModelNotFoundError("The model name is empty or holds a NUL character", remedy=_choices())
    path = Path(name).expanduser() if name.startswith("~") else Path(name)
    if "/" in name or "\\" in name or name.lower().endswith(".gguf") or path.exists():
        return _path(name, path)
    raise ModelNotFoundError(f"No model is called {name!r}", remedy=f"{_suggestion(name)}{_choices()}")


def slug(name: str) -> str:
    """The name as one safe file name; different names give different ones."""
    return quote(name.replace("hf:", "hf--", 1).replace("/", "--", 1) if name.startswith("hf:") else name, safe="")


def _hub(name: str) -> HubName:
    match = _HUB.fullmatch(name)
    if match is None or ".." in name or "--" in match[1]:
        raise ModelNotFoundError(f"{name!r} is not a name on the Hugging Face hub", remedy=f"Write {HUB_FORM}")
    return HubName(name, match[1], match[2])


def _path(name: str, path: Path) -> Path:
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        raise ModelNotFoundError(
            f"{name} is not a model directory",
            cause="it holds no config.json",
            remedy="Give a Hugging Face directory (config.json and *.safetensors) or a GGUF file",
        )
    if path.is_file():
        return path
    on_hub = f", or hf:{name} for the Hugging Face hub" if _HUB.fullmatch(f"hf:{name}") else ""
    raise ModelNotFoundError(f"There is no model at {name}", remedy=f"Correct the path{on_hub}. {_choices()}")


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), registry.entries(), n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}? " if close else ""


def _choices() -> str:
    return f"Known names: {', '.join(registry.entries())}. Or give a path, or {HUB_FORM}"
