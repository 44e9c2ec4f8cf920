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
    @property
    def bos_id(self) -> int | None: ...
    def encode(self, text: str, /, *, add_special: bool = True, parse_special: bool = True) -> list[int]: ...
    def is_special(self, token_id: int, /) -> bool: ...
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

    def advance(self, drawn: List[Sampled]) -> CompletionOutput:
        """Appends tokens, at least one, and those that are sure to follow: the delta they make. Sets the sequence's
        finish reason if it ends here; what would come after the end is dropped."""
        sequence = self.sequence
        text = ""
        tokens: list[Sampled] = []
        for token in drawn:
            text += self._append(token.token_id)
            tokens.append(token)
            if sequence.finish_reason is not None:
                break
        if sequence.constraint is not None:
            while sequence.finish_reason is None and (forced := sequence.constraint.forced) is not None:
                tokens.append(_certain(forced, sequence.params.logprobs))
                text += self._append(forced)
        logprobs = None if tokens[0].logprob is None else tuple(position_logprobs(t, self._decoder) for t in tokens)
        ids = tuple([token.token_id for token in tokens])
        return CompletionOutput(sequence.index, text, ids, logprobs, sequence.finish_reason, sequence.stop_reason)

    def end(self, reason: FinishReason, detail: str | None = None) -> CompletionOutput:
        """The last delta of a choice that ends from outside (abort, error)."""
        self.sequence.finish_reason, self.sequence.stop_reason = reason, detail
        logprobs = None if self.sequence.params.logprobs is None else ()
        return CompletionOutput(self.sequence.index, "", (), logprobs, reason, detail)

    def _append(self, token_id: int) -> str:
        """The text that may be shown now."""
        sequence = self.sequence
        sequence.token_ids.append(token_id)
        if sequence.constraint is not None and token_id not in sequence.request.stop_ids:
            sequence.constraint.accept(token_id)
        stop = token_stop(sequence)
        text, matched = self._decode(token_id, stop)
        if matched is not None:
            stop = Stop("stop", matched)
        if stop is not None:
            sequence.finish_reason, sequence.stop_reason = stop.reason, stop.detail
        return text

    def _decode(self, token_id: int, stop: Stop | None) -> tuple[str, str | None]:
        """The text that may be shown now, and the stop string that ended it."""
        params = self.sequence.params
        hidden = stop is not None and stop.by_token and not params.include_stop_str_in_output
        text = "" if hidden else self._stream.feed(token_id)
        if stop is not None:
            text += self._stream.flush()
        if self.sequence.num_generated <= params.min_tokens:  # too early for a stop string: shown without a search
            return text, None
        text, matched = self._stops.feed(text)
        if stop is not None and matched is None:
            text += self._stops.flush()
        return text, matched


def _certain(token_id: int, alternatives: int | None) -> Sampled:
    """A token that is the only one allowed, as the sampler would have reported it."""
    if alternatives is None:
        return Sampled(token_id)
    return Sampled(token_id, 0.0, 1, ((token_id, 0.0),) if alternatives else ())


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
            num_reused_tokens=None if request.reuse is None else first.num_reused_tokens,
            num_recomputed_tokens=None if request.reuse is None else first.num_recomputed_tokens,
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
