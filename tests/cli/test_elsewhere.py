"""What `bench kv` measures of reused context, on a fake model to which moved KV is as good as computed."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from sixfold.bench.contexts import QUESTION, pairs, permuted
from sixfold.cli.elsewhere import ANSWER, Asker, permuted_chunks, similar_texts
from sixfold.engine.loader import LoadedEngine
from tests.fakes import FakeExecutor, FakeTokenizer, make_core


def asker(executor: FakeExecutor | None = None) -> Asker:
    core = make_core(512, executor=executor, max_model_len=4096, max_num_batched_tokens=512)
    return Asker(LoadedEngine("fake", core, FakeTokenizer(), None))  # type: ignore[arg-type]


def prompts(count: int = 2) -> Any:
    draw = random.Random(0)
    return permuted([draw.randrange(256) for _ in range(4000)], count, 3, 4, 100, ANSWER, 1)


class Careless(FakeExecutor):
    """What it moves is of other tokens."""

    def move_tokens(self, moves: np.ndarray) -> None:
        super().move_tokens(moves)
        for _, _, target, slot, count, _ in moves.tolist():
            self.memory[target, slot : slot + count] += np.uint64(1)


def test_permuted_prompts_have_the_same_chunks_and_another_beginning() -> None:
    for made in prompts():
        assert len(made) == 3
        for one in made:
            assert sorted(one.order) == [0, 1, 2, 3] and one.order[0] != 0
            assert len(one.prompt) == 400 + QUESTION and len(one.text) == ANSWER
            assert sorted(one.prompt[:400]) == sorted(one.donor)


def test_what_moves_well_differs_in_nothing() -> None:
    found = permuted_chunks(asker(), prompts(), (0.15, 0.5), False, lambda done: None)
    for one, recompute in zip(found["curve"], (0.15, 0.5), strict=True):
        assert (one["prompts"], one["recompute"]) == (6, recompute)
        assert one["kl_answer"] == one["kl_text"] == 0 and one["agreement_answer"] == one["agreement_text"] == 1
        assert abs(one["recomputed_share"] - recompute) < 0.03 and one["reused_tokens"] >= 400 * (0.97 - recompute)
        assert one["times_faster"] > 0 < one["ttft_ms"]


def test_chunks_that_were_known_one_by_one() -> None:
    found = permuted_chunks(asker(), prompts(1), (0.15,), True, lambda done: None)
    assert found["curve"][0]["kl_text"] == 0 and found["curve"][0]["reused_tokens"] > 200


def test_what_moves_badly_is_seen() -> None:
    found = permuted_chunks(asker(Careless(512)), prompts(1), (0.15,), False, lambda done: None)
    assert found["curve"][0]["kl_text"] > 0.1 and found["curve"][0]["agreement_answer"] < 0.5


def test_pairs_differ_in_their_fact_and_ask_for_it() -> None:
    made = list(pairs(40, 24, 0))
    assert {pair.kind for pair in made} == {"number", "name", "date", "place"}
    for pair in made:
        assert pair.known != pair.asked and pair.known_fact != pair.fact
        assert pair.known.replace(pair.known_fact, pair.fact) == pair.asked.replace(pair.known_fact, pair.fact)
        assert pair.fact in pair.asked and "{}" not in pair.asked


def test_the_other_texts_fact_is_a_false_accept(monkeypatch: Any) -> None:
    """Computed, the answer is the own fact; with what is known from the other text, it is that one's."""
    (pair,) = pairs(1, 24, 0)
    one = asker()
    answered = iter([pair.known_fact, pair.fact, pair.known_fact])
    monkeypatch.setattr("sixfold.cli.elsewhere._answer", lambda output: next(answered))
    next(answered)
    found = similar_texts(one, iter([pair]), 0.15, lambda done: None)
    assert found["false_accepts"] == 1 and found["kinds"]["number"]["different"] == 1
    assert found["wrong"] == [{"kind": "number", "own": pair.fact, "answer": pair.known_fact}]


def test_answers_to_similar_texts_are_told_apart() -> None:
    found = similar_texts(asker(), pairs(8, 24, 0), 0.15, lambda done: None)
    assert (found["pairs"], found["false_accepts"]) == (8, 0)
    assert sum(kind["different"] for kind in found["kinds"].values()) == 0
    assert found["cached_tokens"] + found["reused_tokens"] > 0.6 * found["prompt_tokens"]
    assert 0 < found["computed_share"] < 0.4
