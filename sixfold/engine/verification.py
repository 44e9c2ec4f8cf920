"""The positions of a step that are drawn, and which of the drawn tokens hold.

Owns: a drafted position as the sampler sees it, and the rule of acceptance. Must not know: the model, the scheduler,
who drafted.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as List
from typing import Any

from sixfold.engine.sampler import Sampled, SamplingFailure, SamplingRow
from sixfold.engine.sequence import NOTHING, Sequence
from sixfold.engine.token_rules import TokenRules
from sixfold.types import SamplingParams


class DraftedPosition:
    """What comes after drafted tokens, drawn as if they had been drawn: same parameters, key and history."""

    constraint = None  # a sequence with one is not drafted for

    def __init__(self, sequence: Sequence, drafts: tuple[int, ...]) -> None:
        self._sequence = sequence
        self._drafts = drafts
        self._tokens: list[int] | None = None

    @property
    def sampler_state(self) -> Any:
        return self._sequence.sampler_state

    @sampler_state.setter
    def sampler_state(self, state: Any) -> None:
        self._sequence.sampler_state = state

    @property
    def params(self) -> SamplingParams:
        return self._sequence.params

    @property
    def rules(self) -> TokenRules:
        return self._sequence.rules

    @property
    def seed(self) -> int:
        return self._sequence.seed

    @property
    def index(self) -> int:
        return self._sequence.index

    @property
    def prompt_length(self) -> int:
        return self._sequence.prompt_length

    @property
    def token_ids(self) -> list[int]:
        if self._tokens is None:  # plain greedy decoding does not look at them
            self._tokens = [*self._sequence.token_ids, *self._drafts]
        return self._tokens

    @property
    def forbidden_ids(self) -> frozenset[int]:
        sequence = self._sequence
        early = sequence.params.min_tokens > sequence.num_generated + len(self._drafts)
        return sequence.request.stop_ids if early else NOTHING


def drawn_positions(sequence: Sequence, drafts: tuple[int, ...]) -> list[SamplingRow]:
    """Of one sequence in one step: 1 + drafts."""
    return [sequence, *(DraftedPosition(sequence, drafts[: i + 1]) for i in range(len(drafts)))]


def holding(drawn: Iterator[Sampled | SamplingFailure], drafts: tuple[int, ...]) -> List[Sampled]:
    """Takes what was drawn for one sequence, 1 + drafts, and gives the tokens that hold: each follows drafts that were
    drawn too. Raises what went wrong with the first; what went wrong later is tried again by the next step."""
    first, *others = [next(drawn) for _ in range(1 + len(drafts))]
    if isinstance(first, SamplingFailure):
        raise first.error
    tokens = [first]
    for draft, token in zip(drafts, others, strict=True):
        if tokens[-1].token_id != draft or isinstance(token, SamplingFailure):
            break
        tokens.append(token)
    return tokens
