"""Perplexity of a model on a text, by llama.cpp's definition, so that numbers of both can be compared.

The text is tokenised whole and cut into consecutive windows of ``context`` tokens; what is left over is not used. A
tokenizer that adds BOS adds it once before the text, and the first token of every window is replaced by it. The second
half of each window is scored: the logits at positions context/2 .. context-2 predict the token after each.

Owns: the windows and the sums. Must not know: files, progress bars, the scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sixfold import _native
from sixfold.errors import InvalidRequestError
from sixfold.runtime.batch import PAGE_SIZE, Batch, Executor, Float32, Int32
from sixfold.runtime.reference import ReferenceModel

LOGIT_ROWS = 64  # logits held at a time: a large vocabulary has a megabyte of them a row


class Encoder(Protocol):
    """What perplexity needs of a tokenizer."""

    bos_id: int | None
    add_bos: bool

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]: ...


@dataclass(frozen=True)
class Perplexity:
    perplexity: float
    error: float  # standard error of the perplexity over the scored tokens
    tokens: int  # scored
    windows: int
    context: int


def windows_of(tokenizer: Encoder, text: str, context: int) -> Int32:
    """The windows [count, context] of a text.

    Raises :class:`InvalidRequestError` when the text has fewer than two windows of tokens, as llama.cpp does.
    """
    if context < 4:
        raise InvalidRequestError(
            f"A window of {context} tokens has no half to score", remedy="Use at least 4", param="ctx"
        )
    # what looks like a control token in the text is text; one final newline is not part of it
    ids = np.asarray(tokenizer.encode(text.removesuffix("\n"), parse_special=False), np.int32)
    if len(ids) < 2 * context:
        raise InvalidRequestError(
            f"The text has {len(ids)} tokens, too few for perplexity at a context of {context}",
            cause=f"two windows take {2 * context}",
            remedy=f"Use a longer text, or --ctx {len(ids) // 2}" if len(ids) >= 8 else "Use a longer text",
            param="text",
        )
    count = len(ids) // context
    windows = ids[: count * context].reshape(count, context).copy()
    if tokenizer.add_bos:
        assert tokenizer.bos_id is not None
        windows[:, 0] = tokenizer.bos_id
    return windows


class WindowScorer(Protocol):
    """Gives the log-probabilities of the tokens that the second half of a window [context] predicts."""

    def __call__(self, window: Int32) -> npt.NDArray[np.float64]: ...


def perplexity(
    windows: Int32, score: WindowScorer, report: Callable[[int, float], None] = lambda done, so_far: None
) -> Perplexity:
    """exp(mean negative log-likelihood). ``report(windows done, perplexity so far)`` is called after each window."""
    total = squares = 0.0
    tokens = 0
    for done, window in enumerate(windows, 1):
        losses = -score(window)
        total += float(losses.sum())
        squares += float((losses * losses).sum())
        tokens += len(losses)
        report(done, math.exp(total / tokens))
    mean = total / tokens
    variance = max(squares / tokens - mean * mean, 0.0)
    error = math.exp(mean) * math.sqrt(variance / max(tokens - 1, 1))
    return Perplexity(math.exp(mean), error, tokens, *windows.shape)


class NativeScorer:
    """Runs windows on an executor that has pages for one window; ``chunk`` tokens a step."""

    def __init__(self, executor: Executor, chunk: int) -> None:
        self._executor = executor
        self._chunk = chunk

    def __call__(self, window: Int32) -> npt.NDArray[np.float64]:
        pages = np.arange(-(-len(window) // PAGE_SIZE), dtype=np.int32)
        first, last = len(window) // 2, len(window) - 1  # positions whose logits are scored
        scores = []
        for begin in range(0, last, self._chunk):  # nothing depends on the last token
            end = min(begin + self._chunk, last)
            self._executor.forward(
                Batch(
                    tokens=window[begin:end],
                    starts=np.array([begin], np.int32),
                    counts=np.array([end - begin], np.int32),
                    pages=pages,
                    page_offsets=np.array([0, len(pages)], np.int32),
                )
            )
            for row, stop in _blocks(max(first, begin), end):
                logits = self._executor.logits(np.arange(row - begin, stop - begin, dtype=np.int32))
                scores.append(_native.logprobs_of(logits, window[row + 1 : stop + 1]))
        return np.concatenate(scores)


class ReferenceScorer:
    """Runs windows on the numpy reference: exact and slow."""

    def __init__(self, model: ReferenceModel) -> None:
        self._model = model

    def __call__(self, window: Int32) -> npt.NDArray[np.float64]:
        first, last = len(window) // 2, len(window) - 1
        logits = self._model.logits(_ids(window[:last]), last - first)
        return _logprobs(logits, window[first + 1 :])


def _ids(window: Int32) -> Sequence[int]:
    return [int(token) for token in window]


def _logprobs(logits: Float32, targets: Int32) -> npt.NDArray[np.float64]:
    """By numpy, so that the reference shares nothing with what it is compared to."""
    wide = logits.astype(np.float64)
    peak = wide.max(axis=1, keepdims=True)
    norm = peak[:, 0] + np.log(np.exp(wide - peak).sum(axis=1))
    return np.asarray(wide[np.arange(len(targets)), targets] - norm, np.float64)


def _blocks(begin: int, end: int) -> Iterator[tuple[int, int]]:
    for row in range(begin, end, LOGIT_ROWS):
        yield row, min(row + LOGIT_ROWS, end)
