"""Runs a beam search of one HTTP request on the engine.

Owns: the rounds. Must not know: JSON, or how beams are scored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sixfold.engine.async_engine import AsyncEngine
from sixfold.engine.beam_search import BeamSearch, BeamSearchParams, beam_output, next_position
from sixfold.engine.collect import Collector
from sixfold.server.generation import TokenPrompt
from sixfold.types import RequestOutput, SamplingParams


async def beam_search(
    engine: AsyncEngine,
    prompts: Sequence[TokenPrompt],
    params: BeamSearchParams,
    *,
    priority: int,
    cache_salt: str | None,
    lora: str | None = None,
) -> list[RequestOutput]:
    """The best continuations of each prompt. Raises the engine's errors; a cancelled search aborts its requests."""
    whole = SamplingParams(max_tokens=params.max_tokens)
    for prompt in prompts:
        engine.validate(prompt.ids, whole)

    async def extend(ids: Sequence[int]) -> RequestOutput:
        collector = Collector()
        async for delta in engine.generate(ids, params.step, priority=priority, cache_salt=cache_salt, lora=lora):
            collector.add(delta)
        return collector.result()

    async def search(prompt: TokenPrompt) -> RequestOutput:
        beams = BeamSearch(params, engine.tokenizer.eos_ids)
        while beams.live:
            found = await asyncio.gather(*(extend([*prompt.ids, *beam.token_ids]) for beam in beams.live))
            beams.extend([next_position(output) for output in found])
        return beam_output("beams", prompt.ids, prompt.text, beams, engine.tokenizer.decode, params.logprobs)

    return list(await asyncio.gather(*(search(prompt) for prompt in prompts)))
