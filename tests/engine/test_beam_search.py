"""Beam search against a search over all texts, and best_of against all choices."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sixfold.engine.beam_search import Beam, BeamSearch, BeamSearchParams
from sixfold.engine.llm import LLM
from sixfold.engine.loader import LoadedEngine
from sixfold.errors import ContextLengthError, InvalidRequestError
from sixfold.types import PositionLogprobs, SamplingParams, TokenLogprob
from tests.fakes import EOS, FakeTokenizer, fake_logits, make_core

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture
def llm() -> LLM:
    core = make_core(256)
    return LLM.from_loaded(LoadedEngine("fake", core, FakeTokenizer(), None))  # type: ignore[arg-type]


def logprobs(ids: list[int]) -> np.ndarray:
    logits = fake_logits(ids).astype(np.float64)
    return logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())


def plain_search(width: int, length: int, penalty: float) -> list[tuple[tuple[int, ...], float]]:
    """To the very end, on the model as a function."""
    live: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    ended: list[tuple[tuple[int, ...], float]] = []

    def score(beam: tuple[tuple[int, ...], float]) -> float:
        count = len(beam[0]) - (beam[0][-1] == EOS)
        return beam[1] / max(1, count) ** penalty

    for _ in range(length):
        grown = []
        for ids, total in live:
            each = logprobs([*PROMPT, *ids])
            for token in np.argsort(-each, kind="stable")[: 2 * width].tolist():
                (ended if token == EOS else grown).append(((*ids, token), total + float(each[token])))
        live = sorted(grown, key=score, reverse=True)[:width]
    return sorted(ended + live, key=score, reverse=True)[:width]


@pytest.mark.parametrize(
    ("width", "length", "penalty"), [(1, 12, 1.0), (2, 30, 1.0), (4, 12, 0.0), (3, 20, 2.0), (3, 8, -1.0)]
)
def test_it_is_the_search_to_the_end(llm: LLM, width: int, length: int, penalty: float) -> None:
    params = BeamSearchParams(beam_width=width, max_tokens=length, length_penalty=penalty)
    (output,) = llm.beam_search({"prompt_token_ids": PROMPT}, params)
    wanted = plain_search(width, length, penalty)
    assert [choice.token_ids for choice in output.outputs] == [ids for ids, _ in wanted]
    for choice, (ids, total) in zip(output.outputs, wanted, strict=True):
        assert choice.cumulative_logprob == pytest.approx(total, abs=1e-5)
        assert choice.finish_reason == ("stop" if ids[-1] == EOS else "length")
    assert llm._core.stats().prefix_hits > 0 or length < 3


def test_it_ends_when_nothing_can_change() -> None:
    """One token a round ends, far ahead of all that go on."""

    def position(*options: tuple[int, float]) -> PositionLogprobs:
        tokens = tuple(TokenLogprob(token, value, 1) for token, value in options)
        return PositionLogprobs(tokens[0], tokens)

    for early, penalty, rounds in ((False, 0.0, 1), (False, 1.0, 50), (True, 1.0, 1)):
        search = BeamSearch(
            BeamSearchParams(beam_width=1, max_tokens=50, early_stopping=early, length_penalty=penalty), frozenset({9})
        )
        done = 0
        while search.live:
            search.extend([position((9, -0.1), (1, -4.0)) if done == 0 else position((1, -0.01), (2, -9.0))])
            done += 1
        assert done == rounds
    assert Beam((1, 2), -4.0).score(1.0) == -2.0 and Beam((1, 9), -4.0, finish_reason="stop").score(1.0) == -4.0


def test_what_it_can_not_do(llm: LLM) -> None:
    for fields in (
        {"beam_width": 0, "max_tokens": 1},
        {"beam_width": 1, "max_tokens": 0},
        {"beam_width": 2, "max_tokens": 2, "temperature": 0.5},
    ):
        with pytest.raises(InvalidRequestError):
            BeamSearchParams(**fields)
    with pytest.raises(ContextLengthError):
        llm.beam_search({"prompt_token_ids": PROMPT}, BeamSearchParams(beam_width=2, max_tokens=5000))


def test_best_of_gives_back_the_likeliest(llm: LLM) -> None:
    params = SamplingParams(n=2, best_of=7, seed=4, max_tokens=9, temperature=2.0)
    (output,) = llm.generate({"prompt_token_ids": PROMPT}, params)
    (everything,) = llm.generate(
        {"prompt_token_ids": PROMPT}, SamplingParams(n=7, seed=4, max_tokens=9, temperature=2.0, logprobs=0)
    )
    means = {c.token_ids: np.mean([p.chosen.logprob for p in c.logprobs or ()]) for c in everything.outputs}
    wanted = sorted(means, key=lambda ids: means[ids], reverse=True)[:2]
    assert [choice.token_ids for choice in output.outputs] == wanted
    assert [(choice.index, choice.logprobs) for choice in output.outputs] == [(0, None), (1, None)]
    assert output.discarded_tokens == sum(map(len, means)) - sum(map(len, wanted))
    with pytest.raises(InvalidRequestError, match="best_of"):
        list(llm.stream({"prompt_token_ids": PROMPT}, params))
    with pytest.raises(InvalidRequestError, match="best_of"):
        SamplingParams(n=3, best_of=2)
