"""Beam search over requests of one token: the prefix cache holds what the beams share.

Owns: the beams, their scores and when the search ends. Must not know: who runs the tokens, threads, text.

Every round extends each live beam by its ``2 * width`` most likely tokens and keeps the best ``width`` of all. A beam
that ends is set aside; the search ends at ``max_tokens`` or when no live beam can still get ahead of ``width`` ended
ones, so the result is that of searching to the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sixfold.errors import InvalidRequestError, SixfoldError
from sixfold.types import CompletionOutput, FinishReason, PositionLogprobs, RequestOutput, SamplingParams


class Decode(Protocol):
    def __call__(self, ids: Sequence[int], /, *, continuation: bool = False) -> str: ...


@dataclass(frozen=True, kw_only=True)
class BeamSearchParams:
    """With vLLM's names. A beam's score is its log-probability over (generated tokens, without the one that ends it) to
    the power of ``length_penalty``. ``early_stopping``: end as soon as ``beam_width`` beams have ended."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool = False
    logprobs: int | None = None  # alternatives to give back at each position, at most 2 * beam_width

    def __post_init__(self) -> None:
        for name, ok in (("beam_width", self.beam_width >= 1), ("max_tokens", self.max_tokens >= 1)):
            if not ok:
                raise InvalidRequestError(f"{name} is below 1", remedy="Use at least 1", param=name)
        if self.temperature != 0.0:
            raise InvalidRequestError(
                f"Beam search with temperature={self.temperature}", cause="it follows the most likely tokens",
                remedy="Set temperature to 0 or leave it out", param="temperature",
            )  # fmt: skip

    @property
    def step(self) -> SamplingParams:
        """What is asked for each beam: its most likely next tokens."""
        return SamplingParams(temperature=0.0, max_tokens=1, logprobs=2 * self.beam_width, ignore_eos=self.ignore_eos)


@dataclass(frozen=True)
class Beam:
    token_ids: tuple[int, ...] = ()  # generated
    cumulative_logprob: float = 0.0
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish_reason: FinishReason | None = None

    def grown(self, position: PositionLogprobs, ends: bool) -> Beam:
        chosen = position.chosen
        return Beam(
            (*self.token_ids, chosen.token_id), self.cumulative_logprob + chosen.logprob, (*self.logprobs, position),
            "stop" if ends else None,
        )  # fmt: skip

    def score(self, length_penalty: float) -> float:
        length = len(self.token_ids) - (self.finish_reason == "stop")
        return self.cumulative_logprob / math.pow(max(1, length), length_penalty)


class BeamSearch:
    """Ask :attr:`live` for the beams to be extended, :meth:`extend` them, until none is left; then :meth:`best`."""

    def __init__(self, params: BeamSearchParams, eos_ids: frozenset[int]) -> None:
        self.live: list[Beam] = [Beam()]
        self._params = params
        self._ends = frozenset() if params.ignore_eos else eos_ids
        self._ended: list[Beam] = []
        self._length = 0

    def extend(self, positions: Sequence[PositionLogprobs]) -> None:
        """``positions``: for each live beam, in order, what could come next."""
        params = self._params
        candidates = [
            beam.grown(PositionLogprobs(token, position.top), token.token_id in self._ends)
            for beam, position in zip(self.live, positions, strict=True)
            for token in position.top
        ]
        self._length += 1
        self._ended += [beam for beam in candidates if beam.finish_reason is not None]
        self._ended = self._ranked(self._ended)
        self.live = self._ranked([beam for beam in candidates if beam.finish_reason is None])
        if self._length == params.max_tokens or self._decided():
            self._ended += [Beam(b.token_ids, b.cumulative_logprob, b.logprobs, "length") for b in self.live]
            self.live = []

    def best(self) -> list[Beam]:
        """The best beams, best first."""
        return self._ranked(self._ended)

    def _ranked(self, beams: list[Beam]) -> list[Beam]:
        penalty = self._params.length_penalty
        return sorted(beams, key=lambda beam: beam.score(penalty), reverse=True)[: self._params.beam_width]

    def _decided(self) -> bool:
        """Whether ``beam_width`` beams have ended and no live one can get ahead of the last of them: a score can rise
        by growing in length only, since no log-probability is above 0."""
        params = self._params
        if not self.live:
            return True
        if len(self._ended) < params.beam_width:
            return False
        if params.early_stopping:
            return True
        if params.length_penalty < 0:
            return False
        highest = self.live[0].cumulative_logprob / math.pow(params.max_tokens, params.length_penalty)
        return highest <= self._ended[-1].score(params.length_penalty)


def next_position(output: RequestOutput) -> PositionLogprobs:
    """What could come next, of a request made with :attr:`BeamSearchParams.step`."""
    (choice,) = output.outputs
    if not choice.logprobs:
        raise SixfoldError("A beam could not be extended", cause=str(choice.stop_reason or choice.finish_reason))
    return choice.logprobs[0]


def beam_output(
    request_id: str,
    prompt_ids: Sequence[int],
    prompt: str | None,
    search: BeamSearch,
    decode: Decode,
    alternatives: int | None = None,
) -> RequestOutput:
    """The best beams as the choices of one request; ``alternatives``: as ``logprobs`` of SamplingParams."""
    choices = []
    for index, beam in enumerate(search.best()):
        shown = beam.token_ids[:-1] if beam.finish_reason == "stop" else beam.token_ids
        choices.append(
            CompletionOutput(
                index, decode(shown, continuation=True), beam.token_ids, _told(beam, alternatives),
                beam.finish_reason, None, beam.cumulative_logprob,
            )
        )  # fmt: skip
    return RequestOutput(request_id, tuple(prompt_ids), tuple(choices), True, prompt)


def _told(beam: Beam, alternatives: int | None) -> tuple[PositionLogprobs, ...] | None:
    if alternatives is None:
        return None
    return tuple(PositionLogprobs(position.chosen, position.top[:alternatives]) for position in beam.logprobs)
