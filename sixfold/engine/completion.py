"""From tokens to what a reader sees: the text, log-probabilities and end of each choice of a request.

Owns: the incremental decoder, the stop search and the times of each choice. Must not know: the scheduler or the model.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from typing import Protocol

from sixfold.engine.sampler import Sampled
from sixfold.engine.sequence import Request, Sequence
from sixfold.engine.stop import Stop, StopStrings, token_stop
from sixfold.types import (
    CompletionOutput,
    FinishedStats,
    FinishReason,
    PositionLogprobs,
    RequestOutput,
    TokenLogprob,
)


class TokenStream(Protocol):
    """Decodes one sequence token by token; only complete characters come out."""

    def feed(self, token_id: int, /) -> str: ...
    def flush(self) -> str: ...


class TokenDecoder(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_ids(self) -> frozenset[int]: ...
    def token_bytes(self, token_id: int, /) -> bytes: ...
    def stream(self, *, skip_special: bool = True, continuation: bool = False) -> TokenStream: ...


class Completion:
    """One choice as its reader sees it grow."""

    def __init__(self, sequence: Sequence, decoder: TokenDecoder) -> None:
        params = sequence.params
        self.sequence = sequence
        self._decoder = decoder
        self._stream = decoder.stream(skip_special=params.skip_special_tokens, continuation=True)
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)
        self.first_scheduled: float | None = None
        self.first_token: float | None = None
        self.last_token = 0.0

    def advance(self, drawn: Sampled) -> CompletionOutput:
        """Appends a token: the delta it makes. Sets the sequence's finish reason if it ends here."""
        sequence = self.sequence
        sequence.token_ids.append(drawn.token_id)
        stop = token_stop(sequence)
        text, matched = self._decode(drawn.token_id, stop)
        if matched is not None:
            stop = Stop("stop", matched)
        if stop is not None:
            sequence.finish_reason, sequence.stop_reason = stop.reason, stop.detail
        logprobs = None if drawn.logprob is None else (position_logprobs(drawn, self._decoder),)
        return CompletionOutput(
            sequence.index, text, (drawn.token_id,), logprobs, sequence.finish_reason, sequence.stop_reason
        )

    def end(self, reason: FinishReason, detail: str | None = None) -> CompletionOutput:
        """The last delta of a choice that ends from outside (abort, error)."""
        self.sequence.finish_reason, self.sequence.stop_reason = reason, detail
        logprobs = None if self.sequence.params.logprobs is None else ()
        return CompletionOutput(self.sequence.index, "", (), logprobs, reason, detail)

    def _decode(self, token_id: int, stop: Stop | None) -> tuple[str, str | None]:
        """The text that may be shown now, and the stop string that ended it."""
        params = self.sequence.params
        hidden = stop is not None and stop.reason == "stop" and not params.include_stop_str_in_output
        text = "" if hidden else self._stream.feed(token_id)
        if stop is not None:
            text += self._stream.flush()
        if self.sequence.num_generated <= params.min_tokens:  # too early for a stop string: shown without a search
            return text, None
        text, matched = self._stops.feed(text)
        if stop is not None and matched is None:
            text += self._stops.flush()
        return text, matched


class Answer:
    """All choices of one request while it is in the engine."""

    def __init__(self, request: Request, sequences: List[Sequence], decoder: TokenDecoder) -> None:
        self.request = request
        self.sequences = sequences
        self.completions = tuple(Completion(sequence, decoder) for sequence in sequences)
        self.unfinished = len(self.completions)
        self.started = False  # a first token of it has run
        self.spoken = False  # an output has been given
        self._decoder = decoder

    def output(self, deltas: List[CompletionOutput]) -> RequestOutput:
        """The request's output for one step; the first one carries the prompt's log-probabilities."""
        first = self.sequences[0]
        scored = None if self.spoken or first.scores_prompt else first.prompt_logprobs
        self.spoken = True
        request = self.request
        return RequestOutput(
            request.id,
            request.prompt_ids,
            tuple(deltas),
            self.unfinished == 0,
            request.prompt,
            None if scored is None else tuple(row and position_logprobs(row, self._decoder) for row in scored),
            first.num_cached_tokens,
            None if request.reuse is None else first.num_reused_tokens,
            None if request.reuse is None else first.num_recomputed_tokens,
        )

    def finished_stats(self, completion: Completion, now: float) -> FinishedStats:
        sequence, request = completion.sequence, self.request
        assert sequence.finish_reason is not None
        return FinishedStats(
            request_id=request.id,
            index=sequence.index,
            finish_reason=sequence.finish_reason,
            prompt_tokens=sequence.prompt_length,
            generation_tokens=sequence.num_generated,
            cached_tokens=self.sequences[0].num_cached_tokens or 0,
            n=request.params.n,
            max_tokens=request.max_tokens,
            arrival=request.arrival,
            first_scheduled=completion.first_scheduled,
            first_token=completion.first_token,
            finished=now,
        )


def position_logprobs(row: Sampled, decoder: TokenDecoder) -> PositionLogprobs:
    """The sampler's answer with the tokens' texts."""
    top: list[TokenLogprob] = []
    for place, (token_id, logprob) in enumerate(row.top):
        tied = place > 0 and logprob == row.top[place - 1][1]
        top.append(_token_logprob(token_id, logprob, top[-1].rank if tied else place + 1, decoder))
    chosen = _token_logprob(row.token_id, row.logprob or 0.0, row.rank or 0, decoder)
    return PositionLogprobs(chosen, tuple(top))


def _token_logprob(token_id: int, logprob: float, rank: int, decoder: TokenDecoder) -> TokenLogprob:
    raw = decoder.token_bytes(token_id) if token_id < decoder.vocab_size else b""  # logits may be padded
    return TokenLogprob(token_id, logprob, rank, raw.decode("utf-8", "replace"), raw)
