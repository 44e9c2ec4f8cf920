"""One answer while it comes: its text, its tokens and its times.

Owns: the clock and the counts. Must not know: where the answer comes from or how it is shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Answer:
    """Fed by a backend; whoever made it can read it also when the backend was interrupted."""

    def __init__(self, on_text: Callable[[str], None] = lambda text: None) -> None:
        self.text = ""
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.tokens = 0
        self.finish_reason: str | None = None  # None: interrupted
        self._on_text = on_text
        self._began = time.monotonic()
        self._first: float | None = None
        self._last = self._began

    def begin(self) -> None:
        """The request goes out now."""
        self._began = self._last = time.monotonic()

    def add(self, text: str, tokens: int) -> None:
        if tokens or text:
            self._last = time.monotonic()
            self._first = self._first or self._last
        self.tokens += tokens
        if text:
            self.text += text
            self._on_text(text)

    @property
    def first_token_seconds(self) -> float | None:
        return None if self._first is None else self._first - self._began

    @property
    def seconds(self) -> float:
        return self._last - self._began

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first; None when there is no second one."""
        if self._first is None or self.tokens < 2 or self._last <= self._first:
            return None
        return (self.tokens - 1) / (self._last - self._first)

    def describe(self) -> dict[str, Any]:
        """As plain values."""
        first, speed = self.first_token_seconds, self.tokens_per_second
        return {
            "text": self.text,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "finish_reason": self.finish_reason,
            "ttft_ms": None if first is None else round(first * 1000, 2),
            "tokens_per_second": None if speed is None else round(speed, 2),
            "seconds": round(self.seconds, 4),
        }
