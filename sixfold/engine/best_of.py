"""``best_of``: more choices are computed than are given back, those with the best mean log-probability a token.

Owns: how many are asked for, and which are kept. Must not know: how they are computed.
"""

from __future__ import annotations

import dataclasses

from sixfold.types import CompletionOutput, RequestOutput, SamplingParams


def widen(params: SamplingParams) -> SamplingParams:
    """What is asked of the engine: every choice, with the log-probabilities that rank them."""
    if params.best_of is None:
        return params
    logprobs = 0 if params.logprobs is None else params.logprobs
    return dataclasses.replace(params, n=params.best_of, best_of=None, logprobs=logprobs)


def select(output: RequestOutput, params: SamplingParams) -> RequestOutput:
    """The ``n`` best of them, best first, numbered anew; the earlier one among equals."""
    if params.best_of is None:
        return output
    best = sorted(output.outputs, key=_mean, reverse=True)[: params.n]
    kept = [dataclasses.replace(choice, index=i) for i, choice in enumerate(best)]
    if params.logprobs is None:
        kept = [dataclasses.replace(choice, logprobs=None) for choice in kept]
    dropped = sum(len(c.token_ids) for c in output.outputs) - sum(len(c.token_ids) for c in best)
    return dataclasses.replace(output, outputs=tuple(kept), discarded_tokens=dropped)


def _mean(choice: CompletionOutput) -> float:
    taken = [position.chosen.logprob for position in choice.logprobs or ()]
    return sum(taken) / len(taken) if taken else float("-inf")
