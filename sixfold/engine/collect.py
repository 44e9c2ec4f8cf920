"""Adds up the deltas of a request to its whole output.

Owns: the sums. Must not know: where deltas come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sixfold.types import CompletionOutput, FinishReason, PositionLogprobs, RequestOutput


@dataclass(slots=True)
class _Choice:
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def add(self, delta: CompletionOutput) -> None:
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        if delta.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs += delta.logprobs
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.stop_reason = delta.stop_reason if delta.finish_reason else self.stop_reason


class Collector:
    """Takes the deltas of one request in order; :meth:`result` is everything so far, choices by index."""

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}
        self._first: RequestOutput | None = None
        self._finished = False

    def add(self, delta: RequestOutput) -> None:
        self._first = self._first or delta
        self._finished = delta.finished
        for output in delta.outputs:
            self._choices.setdefault(output.index, _Choice()).add(output)

    def result(self) -> RequestOutput:
        first = self._first
        if first is None:
            raise AssertionError("there is no result before the first delta")
        return RequestOutput(
            request_id=first.request_id,
            prompt_token_ids=first.prompt_token_ids,
            outputs=tuple(_output(index, self._choices[index]) for index in sorted(self._choices)),
            finished=self._finished,
            prompt=first.prompt,
            prompt_logprobs=first.prompt_logprobs,
            num_cached_tokens=first.num_cached_tokens,
            num_reused_tokens=first.num_reused_tokens,
            num_recomputed_tokens=first.num_recomputed_tokens,
        )


def _output(index: int, choice: _Choice) -> CompletionOutput:
    return CompletionOutput(
        index,
        "".join(choice.texts),
        tuple(choice.token_ids),
        None if choice.logprobs is None else tuple(choice.logprobs),
        choice.finish_reason,
        choice.stop_reason,
    )
