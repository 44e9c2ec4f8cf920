"""What a request's parameters rule about its tokens, for one model: before it is queued, on the caller's thread.

Owns: which parameters make token rules and which a constraint. Must not know: the step, how grammars are compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sixfold.engine.constraint import TokenConstraint
from sixfold.engine.grammar import GrammarMatcher, Grammars
from sixfold.engine.grammar.matcher import Ends
from sixfold.engine.token_rules import NO_RULES, Cutter, RuleMaker, TokenRules
from sixfold.types import SamplingParams


class RuleTokenizer(Cutter, Protocol):
    @property
    def eos_ids(self) -> frozenset[int]: ...


class RequestRules:
    def __init__(self, tokenizer: RuleTokenizer, vocab_size: int, grammars: Grammars) -> None:
        self._eos_ids = tokenizer.eos_ids
        self._maker = RuleMaker(tokenizer, vocab_size)
        self._grammars = grammars

    async def prepare(self, params: SamplingParams) -> object:
        """As long as the answer is kept, :meth:`constraint` need not wait."""
        if params.structured_outputs is None:
            return None
        return await self._grammars.compiled(params.structured_outputs)

    def tokens(self, params: SamplingParams) -> TokenRules:
        wanted = params.logit_bias or params.allowed_token_ids or params.bad_words or params.dry_multiplier
        return self._maker.make(params) if wanted else NO_RULES

    def constraint(self, params: SamplingParams, stop_ids: frozenset[int]) -> Callable[[], TokenConstraint] | None:
        """Makes the constraint of one choice; None: there is none. Waits for a grammar that is not compiled yet.

        Forced tokens are taken at once only where nothing else could forbid them.
        """
        if params.structured_outputs is None:
            return None
        grammar = self._grammars.compile(params.structured_outputs)
        ends = Ends(self._eos_ids if params.ignore_eos else frozenset(), stop_ids, params.min_tokens)
        free = not (params.allowed_token_ids or params.bad_words or params.no_repeat_ngram_size)
        return lambda: GrammarMatcher(grammar, ends, self._grammars, jumps=free)
