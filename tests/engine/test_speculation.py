"""Who is drafted for, how far, and what of it stays: on fakes."""

from __future__ import annotations

import numpy as np

from sixfold.engine.collect import Collector
from sixfold.engine.prompt_lookup import Draft, PromptLookup
from sixfold.engine.speculation import Speculation
from sixfold.engine.step_cost import StepCost
from sixfold.types import SamplingParams
from tests.fakes import VOCAB, FakeExecutor, make_core

PERIOD = 12


class Repeating(FakeExecutor):
    """What follows a token is a question of the token alone, so its text repeats."""

    def logits(self, rows: np.ndarray) -> np.ndarray:
        tokens = self.batches[-1].tokens[rows]
        return np.eye(VOCAB, dtype=np.float32)[(tokens + 1) % PERIOD]


class Wrong:
    def propose(self, sequence, count: int, /) -> Draft:
        return Draft((99,) * count, 20)


def generate(drafter, *, tokens: int = 150, n: int = 1, seconds=lambda rows: 1.0, **options):
    core = make_core(executor=Repeating(64), speculation=drafter and Speculation(drafter), **options)
    if drafter is not None:
        core.speculation.stepped = lambda rows, _: core.speculation._cost.add(
            sum(row.run for row in rows), seconds(sum(row.run for row in rows))
        )
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, n=n)
    core.add(core.limits.accept("a", [1, 2, 3], params))
    collector = Collector()
    steps = 0
    while core.has_work:
        for output in core.step():
            collector.add(output)
        core.cache.check_integrity()
        steps += 1
    return collector.result().outputs, steps, core


def test_a_text_that_repeats_takes_few_steps() -> None:
    plain, _, _ = generate(None)
    got, steps, core = generate(PromptLookup())
    assert [o.token_ids for o in got] == [o.token_ids for o in plain]
    assert steps < 40
    stats = core.stats()
    assert stats.generation_tokens == 150
    assert 0 < stats.accepted_tokens <= stats.drafted_tokens
    assert stats.jumped_tokens == 0
    assert core.scheduler.computed == 0


def test_choices_share_pages_and_draft() -> None:
    got, steps, _ = generate(PromptLookup(), n=3)
    assert len({o.token_ids for o in got}) == 1
    assert steps < 50


def test_who_is_always_wrong_is_hardly_asked() -> None:
    got, steps, core = generate(Wrong(), tokens=900, seconds=lambda rows: 8.0 + rows)
    assert len(got[0].token_ids) == 900 and steps == 900
    assert core.speculation.drafted < 60
    assert core.speculation.accepted == 0


def test_drafting_ends_when_a_row_turns_out_to_cost_a_step() -> None:
    """A few drafts are needed to learn it; they were right, so they cost nothing."""
    _, steps, core = generate(PromptLookup(), tokens=900, seconds=float)
    assert core.speculation.drafted < 180 and steps > 720


def test_the_cost_of_a_row_is_learnt() -> None:
    cost = StepCost()
    assert 0 < cost.share_of_a_row(1) < cost.share_of_a_row(32) < 1
    for step in range(200):
        rows = 1 + 7 * (step % 2)
        cost.add(rows, 3.0 + 0.1 * rows)
    assert abs(cost.share_of_a_row(1) - 0.1 / 3.1) < 0.03
