"""Bad words, repeated n-grams and DRY, against their definitions written plainly."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.engine.sampler import Sampled, Sampler, SamplingFailure
from sixfold.engine.token_rules import NO_RULES, RuleMaker, TokenRules
from sixfold.types import SamplingParams
from tests.engine.test_sampler import Row
from tests.fakes import VOCAB, FakeTokenizer

SMALL = 6  # ids, so that everything repeats
HISTORY = st.lists(st.integers(0, SMALL - 1), min_size=1, max_size=40)


def scores(
    tokens: list[int], rules: TokenRules = NO_RULES, prompt_length: int = 1, **fields: Any
) -> list[float | None]:
    """For every id 0.0 if it can be drawn, None if only the last one, which nothing touches, is left."""
    found: list[float | None] = []
    for token_id in range(SMALL):
        logits = np.full(SMALL + 1, -np.inf, np.float32)
        logits[token_id], logits[SMALL] = 0.0, -3e30
        row = Row(SamplingParams(temperature=0.0, **fields), token_ids=tokens, prompt_length=prompt_length)
        row.rules = rules
        (drawn,) = Sampler().sample([row], logits[None])
        assert isinstance(drawn, Sampled)
        found.append(None if drawn.token_id == SMALL else 0.0)
    return found


def forbidden(found: list[float | None]) -> set[int]:
    return {token_id for token_id, score in enumerate(found) if score is None}


@given(
    tokens=HISTORY,
    words=st.lists(st.lists(st.integers(0, SMALL - 1), min_size=1, max_size=3), max_size=5),
    data=st.data(),
)
def test_the_last_token_of_a_bad_word_is_not_drawn_after_the_others(tokens: list[int], words: Any, data: Any) -> None:
    prompt = data.draw(st.integers(1, len(tokens)))
    output = tokens[prompt:]
    wanted = {word[-1] for word in words if len(word) == 1 or output[-len(word) + 1 :] == word[:-1]}
    rules = TokenRules(bad_words=tuple(map(tuple, words)))
    assert forbidden(scores(tokens, rules, prompt)) == wanted


@given(tokens=HISTORY, n=st.integers(1, 5))
def test_no_ngram_comes_twice(tokens: list[int], n: int) -> None:
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    wanted = {gram[-1] for gram in grams if gram[:-1] == tuple(tokens[len(tokens) - n + 1 :])}
    assert forbidden(scores(tokens, no_repeat_ngram_size=n)) == wanted


def dry(
    tokens: list[int], multiplier: float, base: float, allowed: int, last_n: int, breakers: set[int]
) -> dict[int, float]:
    """The definition: for every earlier place, how long its past equals that of the end."""
    tokens = tokens if last_n < 0 else tokens[len(tokens) - min(last_n, len(tokens)) :]
    limit = next((i for i, t in enumerate(reversed(tokens)) if t in breakers), len(tokens))
    longest: dict[int, int] = {}
    for end in range(1, len(tokens)):
        length = 0
        while length < end and tokens[end - 1 - length] == tokens[-1 - length]:
            length += 1
        length = min(length, limit)
        if length >= allowed and tokens[end] not in breakers:
            longest[tokens[end]] = max(longest.get(tokens[end], 0), length)
    return {token: multiplier * base ** (length - allowed) for token, length in longest.items()}


@settings(max_examples=200)
@given(
    tokens=HISTORY, allowed=st.integers(1, 4), last_n=st.sampled_from([-1, 0, 5, 12]),
    breakers=st.sets(st.integers(0, SMALL - 1), max_size=2),
)  # fmt: skip
def test_dry_lowers_what_would_go_on_with_a_repeat(tokens: Any, allowed: int, last_n: int, breakers: set[int]) -> None:
    """The penalty is measured by the draw it turns: an id a little less below is drawn instead, a little more not."""
    penalties = dry(tokens, 0.5, 1.5, allowed, last_n, breakers)
    params = SamplingParams(
        temperature=0.0, dry_multiplier=0.5, dry_base=1.5, dry_allowed_length=allowed, dry_penalty_last_n=last_n
    )
    for token_id in range(SMALL):
        penalty = penalties.get(token_id, 0.0)
        for gap, wanted in ((penalty * 0.99 - 1e-4, SMALL), (penalty * 1.01 + 1e-4, token_id)):
            logits = np.full(SMALL + 1, -np.inf, np.float32)
            logits[token_id], logits[SMALL] = 0.0, -gap
            row = Row(params, token_ids=tokens, rules=TokenRules(dry_breaker_ids=tuple(sorted(breakers))))
            (drawn,) = Sampler().sample([row], logits[None])
            assert isinstance(drawn, Sampled)
            assert drawn.token_id == wanted or (gap < 0 and penalty == 0.0)


def test_a_breaker_of_several_tokens_stops_a_repeat() -> None:
    tokens = [1, 2, 4, 5, 3, 1, 2, 4, 5]  # 3 comes next; [4, 5] breaks
    logits = np.full((1, SMALL + 1), -10.0, np.float32)
    logits[0, 3], logits[0, SMALL] = 0.0, -1.0
    params = SamplingParams(temperature=0.0, dry_multiplier=5.0)
    for rules, wanted in ((NO_RULES, SMALL), (TokenRules(dry_breakers=((4, 5),)), 3)):
        (drawn,) = Sampler().sample([Row(params, token_ids=tokens, rules=rules)], logits)
        assert isinstance(drawn, Sampled) and drawn.token_id == wanted


def test_only_allowed_ids_are_drawn() -> None:
    maker = RuleMaker(FakeTokenizer(), VOCAB)
    params = SamplingParams(allowed_token_ids=(5, 64, 259), temperature=50.0)
    logits = np.random.default_rng(1).normal(size=(200, VOCAB)).astype(np.float32)
    rows = [Row(params, seed=i, rules=maker.make(params)) for i in range(200)]
    drawn = Sampler().sample(rows, logits)
    assert {token.token_id for token in drawn if isinstance(token, Sampled)} == {5, 64, 259}
    logits[:, [5, 64, 259]] = -np.inf
    assert isinstance(Sampler().sample(rows[:1], logits[:1])[0], SamplingFailure)


def test_texts_become_tokens() -> None:
    made = RuleMaker(FakeTokenizer(), VOCAB).make(
        SamplingParams(
            logit_bias={97: 1.0, "ab": 2.0, "bb": -5.0},
            bad_words=("no", "x"),
            dry_multiplier=1.0,
            dry_sequence_breakers=("\n", "ab"),
        )
    )
    assert made.bias == {97: 3.0, 98: -3.0}
    assert made.bad_words == ((110, 111), (120,))
    assert made.dry_breaker_ids == (10,) and made.dry_breakers == ((97, 98),)
