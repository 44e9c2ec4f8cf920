"""A request as it was accepted, and the sequences (choices) that answer it.

Owns: the data. Must not know: how sequences are scheduled, run or sampled. A sequence has one writer, the engine
thread: the scheduler moves its status and pages, the core appends its tokens.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from collections.abc import Sequence as List
from dataclasses import dataclass, field
from typing import Any

from sixfold.engine.adapter import NO_SLOT, Adapter
from sixfold.engine.constraint import TokenConstraint
from sixfold.engine.kv_cache import PageTable
from sixfold.engine.prefix_tree import Entry
from sixfold.engine.sampler import Sampled
from sixfold.engine.token_rules import NO_RULES, TokenRules
from sixfold.types import FinishReason, ReuseContext, SamplingParams

NOTHING: frozenset[int] = frozenset()
PROMPT_SCORE_ROWS = 64  # prompt rows scored in one step: bounds the logits kept at once


@dataclass(frozen=True, slots=True)
class Request:
    """A validated request: everything in it is in range and can be finished by a sequence that runs alone."""

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    max_tokens: int  # resolved: never None, never beyond the context
    seed: int  # 64 bits
    stop_ids: frozenset[int]  # ids that end a sequence: end-of-sequence ids (unless ignored) and stop_token_ids
    priority: int = 0  # lower is more urgent
    arrival: float = 0.0  # seconds on the monotonic clock
    prompt: str | None = None
    cache_salt: str | None = None  # only requests of the same salt begin with each other's pages
    rules: TokenRules = NO_RULES  # the parameters that speak of text, in token ids
    constrain: Callable[[], TokenConstraint] | None = None  # makes one for each choice
    reuse: ReuseContext | None = None  # of context that is not a prefix, an approximation; None: exact
    lora: Adapter | None = None  # what changes the model for it
    speculation: bool = True  # tokens may be drafted, if the engine does; it changes no token


class Status(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of a request while it is in the engine.

    token_ids      | prompt ............... | generated ...... |
                   0      num_computed      prompt_length      len(token_ids)
                          ^ tokens before it have their KV in ``table``

    Beyond it there may be tokens whose KV is there already (``ready``, reused context); what is left are gaps:

                   | computed | gap | ready | gap | ready | last gap |
                              ^ num_computed
    """

    request: Request
    index: int  # choice index, 0..n-1
    order: tuple[int, float, int, int]  # (priority, arrival, serial, index): less is more urgent; unique
    token_ids: list[int]
    prompt_length: int
    table: PageTable = field(default_factory=PageTable)
    num_computed: int = 0
    num_adopted: int = 0  # it began with pages of so many tokens, which others may have too
    ready: list[tuple[int, int]] = field(default_factory=list)  # [begin, end), in order; none reaches the last token
    prefix: Entry | None = None  # the prefix cache's: the last of its pages that was entered; None: it enters none
    num_cached_tokens: int | None = None  # of the prompt, found when it first began; None: it has not
    num_reused_tokens: int = 0  # of the prompt, moved from elsewhere when it first began
    num_recomputed_tokens: int = 0  # of the prompt, found elsewhere then, and computed all the same
    status: Status = Status.WAITING
    siblings: tuple[Sequence, ...] = ()  # all choices of the request, in order, itself included
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: list[Sampled | None] | None = None  # choice 0 only; grows with the prefill
    adapter_slot: int = NO_SLOT  # where its adapter is while it runs
    sampler_state: Any = None  # whatever the sampler wants to keep with the sequence
    speculation_state: Any = None  # the same of the speculation
    drafter_state: Any = None  # and of its drafter
    constraint: TokenConstraint | None = None  # what must be followed beside the parameters; told of every token

    @property
    def params(self) -> SamplingParams:
        return self.request.params

    @property
    def rules(self) -> TokenRules:
        return self.request.rules

    @property
    def seed(self) -> int:
        return self.request.seed

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.prompt_length

    @property
    def num_held(self) -> int:
        """Tokens with their KV in pages."""
        return self.num_computed + sum(end - begin for begin, end in self.ready)

    def begin(self, tokens: int, ready: List[tuple[int, int]] = (), again: int = 0) -> None:
        """It has pages for its first ``tokens``; those of ``ready`` need not be run, nor what precedes them but for the
        first ``again``."""
        self.num_adopted = tokens
        self.ready = list(ready)
        self.advance(0 if again else tokens)

    def advance(self, end: int) -> None:
        """All before ``end`` have their KV: it goes on where the next gap begins."""
        while self.ready and self.ready[0][0] == end:
            end = self.ready.pop(0)[1]
        self.num_computed = end

    def next_tokens(self, count: int) -> Iterator[tuple[int, int]]:
        """(start, count) of each piece of the next ``count`` tokens to run."""
        start = self.num_computed
        for begin, end in (*self.ready, (len(self.token_ids), 0)):
            piece = min(begin - start, count)
            if piece <= 0:
                return
            yield start, piece
            count -= piece
            start = end

    @property
    def draft_room(self) -> int:
        """How many tokens may be drafted: the one after them is drawn as well."""
        request = self.request
        decodes = self.num_computed == len(self.token_ids) - 1
        if not (decodes and request.speculation) or self.constraint is not None:
            return 0
        return request.max_tokens - self.num_generated - 1

    @property
    def forbidden_ids(self) -> frozenset[int]:
        """The ids that must not be sampled next: whatever would end the sequence before ``min_tokens``."""
        request = self.request
        if self.constraint is not None:  # it knows whether anything else is possible
            return NOTHING
        if request.params.min_tokens > len(self.token_ids) - self.prompt_length:
            return request.stop_ids
        return NOTHING

    @property
    def scores_prompt(self) -> bool:
        """Whether prompt positions still wait for their log-probabilities."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.prompt_length

    @property
    def skippable(self) -> int:
        """How many tokens may be left out of a run if their KV is there: not the last, whose logits are wanted, and
        not the one before the first prompt token that still waits for its log-probability."""
        last = len(self.token_ids) - 1
        if self.prompt_logprobs is not None and self.scores_prompt:
            return min(last, len(self.prompt_logprobs) - 1)
        return last


def choices(request: Request, serial: int) -> tuple[Sequence, ...]:
    """The n sequences of a request; ``serial`` is its place in the order of arrival."""
    made = tuple(
        Sequence(
            request,
            index,
            order=(request.priority, request.arrival, serial, index),
            token_ids=list(request.prompt_ids),
            prompt_length=len(request.prompt_ids),
            constraint=None if request.constrain is None else request.constrain(),
        )
        for index in range(request.params.n)
    )
    for sequence in made:
        sequence.siblings = made
    if request.params.prompt_logprobs is not None:
        made[0].prompt_logprobs = [None]  # nothing precedes the first token
    return made
