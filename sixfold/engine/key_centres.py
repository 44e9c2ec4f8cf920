"""Finds the centres of a model's keys, from which 4-bit pages count (csrc/kv_centre.hpp): their means over a text.

Owns: the text, and where centres are kept between starts. Must not know: how they are used.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from importlib import resources
from pathlib import Path

import numpy as np

from sixfold import config
from sixfold.compile.plan import Plan
from sixfold.engine.kv_cache import pages_for
from sixfold.engine.tokenizer import Tokenizer
from sixfold.runtime.batch import Batch, Float32
from sixfold.runtime.native import NativeExecutor

log = logging.getLogger(__name__)
MOST_TOKENS = 1024


def key_centres(plan: Plan, tokenizer: Tokenizer, *, isa: str, threads: int | None) -> Float32:
    """[layers, kv_heads, head_size]: the mean key before rope, over a text that comes with Sixfold.

    The same bits for the same plan, instruction set and build; runs the model once, about 1,000 tokens, and keeps what
    it has found beside the plans.
    """
    text = resources.files("sixfold.engine").joinpath("calibration.txt").read_text("utf-8")
    tokens = np.array(tokenizer.encode(text)[: min(MOST_TOKENS, plan.context)], np.int32)
    pages = pages_for(len(tokens))
    executor = NativeExecutor(plan, num_pages=pages, max_tokens=len(tokens), isa=isa, threads=threads)
    path = _path(executor.numerics, tokens)
    shape = tuple(int(plan.meta["sizes"][name]) for name in ("layers", "kv_heads", "head_size"))
    kept = _read(path, shape)
    if kept is not None:
        return kept
    table = np.arange(pages, dtype=np.int32)
    start, count = np.zeros(1, np.int32), np.array([len(tokens)], np.int32)
    executor.forward(Batch(tokens, start, count, table, np.array([0, pages], np.int32)))
    found = executor.key_means(table, len(tokens))
    _write(path, found)
    return found


def _path(numerics: str, tokens: np.ndarray) -> Path:
    digest = hashlib.sha256(f"{numerics} key centres ".encode() + tokens.tobytes()).hexdigest()
    return config.home() / "plans" / f"{digest}.centres.npy"


def _read(path: Path, shape: tuple[int, ...]) -> Float32 | None:
    """What is kept there, if it is what it should be."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if found.shape != shape or found.dtype != np.float32 or not np.isfinite(found).all():
        log.warning("%s is damaged and is made anew", path)
        return None
    return np.asarray(found)


def _write(path: Path, centres: Float32) -> None:
    """Keeps them if it can; the next start finds them again otherwise."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:  # gone whatever happens
            written = Path(directory) / path.name
            np.save(written, centres, allow_pickle=False)
            written.replace(path)
    except OSError as error:
        log.warning("Key centres can not be kept in %s: %s", path.parent, error)
