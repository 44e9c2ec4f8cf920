from __future__ import annotations

import math
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold import _native
from sixfold.engine.sampler import Sampled, Sampler, SamplingFailure
from sixfold.engine.token_rules import NO_RULES, TokenRules
from sixfold.errors import InvalidRequestError
from sixfold.types import SamplingParams
from tests.engine import sampling_reference as reference

INF = math.inf
NAN = math.nan


@dataclass
class Row:
    params: SamplingParams
    seed: int = 1
    index: int = 0
    prompt_length: int = 1
    token_ids: list[int] = field(default_factory=lambda: [0])
    forbidden_ids: Collection[int] = frozenset()
    rules: TokenRules = NO_RULES
    constraint: None = None
    sampler_state: Any = None

    def __post_init__(self) -> None:
        if self.params.logit_bias:
            self.rules = TokenRules(bias=self.params.logit_bias)


def sample(row: Row, logits: Any) -> Sampled:
    (result,) = Sampler().sample([row], np.array([logits], dtype=np.float32))
    assert isinstance(result, Sampled), result
    return result


def expected(row: Row, logits: np.ndarray) -> int | None:
    bits = _native.random_bits(row.seed, row.index, len(row.token_ids))
    return reference.draw(logits, row.params, bits, row.token_ids, row.prompt_length, row.forbidden_ids)


def random_logits(seed: int, vocabulary: int, spread: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, vocabulary).astype(np.float32)


def draws(params: SamplingParams, logits: np.ndarray, count: int) -> np.ndarray:
    """Tokens drawn at ``count`` positions from the same logits."""
    sampler = Sampler()
    rows = [Row(params, token_ids=[0] * 4, index=i % 7, seed=i // 7) for i in range(count)]
    results = sampler.sample(rows, np.broadcast_to(logits, (count, len(logits))))
    return np.array([result.token_id for result in results if isinstance(result, Sampled)])


# --- the generator ---


def test_philox_gives_the_published_known_answers() -> None:
    assert _native.philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert _native.philox([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]
    assert _native.philox(*pi) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_every_part_of_the_key_counts() -> None:
    keys = [(1, 0, 0), (2, 0, 0), (1 << 32, 0, 0), (1, 1, 0), (1, 0, 1), (1, 0, 1 << 32)]
    assert len({_native.random_bits(*key) for key in keys}) == len(keys)


# --- every parameter against the reference ---

CASES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"temperature": 1e-40},
    {"temperature": 100.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 3000},
    {"top_k": 1 << 40},
    {"top_p": 0.5},
    {"top_p": 0.97},
    {"top_p": 1e-300},
    {"top_p": 0.9, "temperature": 8.0},
    {"typical_p": 0.3},
    {"typical_p": 0.95},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.5, "temperature": 0.0},
    {"frequency_penalty": 0.7, "presence_penalty": -0.4},
    {"logit_bias": {3: 5.0, 4: -100.0}},
    {"top_k": 100, "top_p": 0.8, "min_p": 0.001, "typical_p": 0.8, "temperature": 1.7, "repetition_penalty": 1.1},
]


@pytest.mark.parametrize("fields", CASES, ids=str)
@pytest.mark.parametrize(("vocabulary", "spread"), [(1000, 3.0), (49152, 3.0), (49152, 0.2), (5000, 12.0)])
def test_draws_what_the_reference_draws(fields: dict[str, Any], vocabulary: int, spread: float) -> None:
    history = [int(i) for i in np.random.default_rng(0).integers(0, 200, 300)]
    rows = [
        Row(SamplingParams(**fields), seed=s, index=s % 3, prompt_length=250, token_ids=history[: 290 + s])
        for s in range(6)
    ]
    logits = np.stack([random_logits(7 + s, vocabulary, spread) for s in range(6)])
    results = Sampler().sample(rows, logits)
    for row, line, result in zip(rows, logits, results, strict=True):
        assert isinstance(result, Sampled) and result.token_id == expected(row, line)


PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 1e-45, 1e-6, 0.7, 1.0, 3.0, 100.0]),
        "top_k": st.integers(-1, 150),
        "top_p": st.floats(0, 1, exclude_min=True),
        "min_p": st.floats(0, 1),
        "typical_p": st.floats(0, 1, exclude_min=True),
        "repetition_penalty": st.floats(0.01, 100),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.integers(0, 4), st.floats(-1e38, 1e38), max_size=3),
    },
)
HOSTILE = st.sampled_from([NAN, INF, -INF, 1e38, -1e38, 3.4e38, -3.4e38, 1e-45, 0.0, -0.0, 5.0])


@settings(max_examples=300, deadline=None)
@given(
    PARAMS,
    st.lists(st.one_of(HOSTILE, st.integers(-8, 8), st.floats(-20, 20, width=32)), min_size=5, max_size=200),
    st.integers(0, (1 << 64) - 1),
    st.lists(st.integers(0, 4), max_size=9),
    st.sets(st.integers(0, 4)),
)
def test_any_row_draws_what_the_reference_draws(
    fields: dict[str, Any], logits: list[float], seed: int, tokens: list[int], forbidden: set[int]
) -> None:
    row = Row(SamplingParams(**fields), seed=seed, token_ids=tokens, prompt_length=len(tokens) // 2)
    row.forbidden_ids = forbidden
    line = np.array(logits, dtype=np.float32)
    (result,) = Sampler().sample([row], line[None])
    wanted = expected(row, line)
    if wanted is None:
        assert isinstance(result, SamplingFailure)
    else:
        assert isinstance(result, Sampled) and result.token_id == wanted


# --- the distribution ---


def test_exponential_is_accurate() -> None:
    for x in np.concatenate([np.linspace(-12, 0, 3001), [-1e-7, -0.34657359, -0.3465736]]).astype(np.float32):
        weight = math.expm1(_native.log_sum_exp(np.array([0, x], dtype=np.float32)))  # log(1 + exp(x))
        assert abs(weight - math.exp(x)) <= 2 * np.spacing(np.float32(math.exp(x))) + 2**-44


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.6}, {"top_p": 0.9, "top_k": 20}, {"min_p": 0.03}])
def test_frequencies_fit_the_probabilities(fields: dict[str, Any]) -> None:
    logits = random_logits(3, 40, 1.0)
    params = SamplingParams(**fields)
    x = logits.astype(np.float64) / params.temperature
    p = np.exp(x - x.max())
    p[p < params.min_p] = 0
    ranked = np.argsort(-p)
    if params.top_k:
        p[ranked[params.top_k :]] = 0
    share = np.cumsum(p[ranked]) / p.sum()
    p[ranked[1:][share[:-1] >= params.top_p]] = 0
    p /= p.sum()
    count = 30_000
    seen = np.bincount(draws(params, logits, count), minlength=40)
    possible = p > 0
    assert not seen[~possible].any()
    statistic = ((seen - count * p)[possible] ** 2 / (count * p[possible])).sum()
    freedom = int(possible.sum()) - 1
    # Wilson-Hilferty: the cube root of chi-square / freedom is nearly normal; 3.7 sigma is 1 in 10,000
    bound = freedom * (1 - 2 / (9 * freedom) + 3.7 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < bound


def test_top_k_of_equals_keeps_the_lowest_ids() -> None:
    assert set(draws(SamplingParams(top_k=3), np.zeros(200, np.float32), 300)) == {0, 1, 2}
    assert set(draws(SamplingParams(top_p=0.02), np.zeros(200, np.float32), 300)) == {0, 1, 2, 3}


def test_tiny_temperature_is_greedy_and_fair_to_equals() -> None:
    logits = np.array([1, 2, 2, 2 - 1e-3], dtype=np.float32)
    assert set(draws(SamplingParams(temperature=1e-40), logits, 100)) == {1, 2}
    assert set(draws(SamplingParams(temperature=0.0), logits, 10)) == {1}


# --- a row depends on itself only ---


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(PARAMS, st.integers(0, 1 << 63)), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_batch_does_not_matter(requests: list[tuple[dict[str, Any], int]], random: Any) -> None:
    rows = [Row(SamplingParams(**fields, logprobs=2), seed=seed) for fields, seed in requests]
    logits = np.stack([random_logits(i, 300) for i in range(len(rows))])
    alone = [Sampler().sample([row], line[None])[0] for row, line in zip(rows, logits, strict=True)]
    order = list(range(len(rows)))
    random.shuffle(order)
    together = Sampler().sample([rows[i] for i in order], logits[order])
    assert together == [alone[i] for i in order]


def test_threads_do_not_matter() -> None:
    params = SamplingParams(top_p=0.95, repetition_penalty=1.1, logprobs=3)
    logits = np.stack([random_logits(i, 20_000) for i in range(16)])
    rows = [Row(params, seed=i) for i in range(16)]
    wanted = Sampler().sample(rows, logits)
    with ThreadPoolExecutor(4) as pool:
        got = pool.map(lambda i: Sampler().sample([rows[i]], logits[i : i + 1])[0], range(16))
        assert list(got) == wanted


@pytest.mark.parametrize("min_p", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("vocabulary", [64, 1024, 5000, 20_000])
def test_chunks_that_min_p_empties_change_nothing(min_p: float, vocabulary: int) -> None:
    for seed in range(20):
        logits = random_logits(seed, vocabulary, spread=1.0)
        logits[vocabulary // 3 :] -= np.float32(9.0)  # most chunks hold nothing that may be drawn
        row = Row(SamplingParams(min_p=min_p), seed=seed)
        assert sample(row, logits).token_id == expected(row, logits)


def test_logits_are_left_alone_and_may_be_padded() -> None:
    padded = random_logits(5, 4 * 128).reshape(4, 128)
    before = padded.copy()
    params = SamplingParams(repetition_penalty=2.0, logit_bias={1: 9.0}, logprobs=4)
    rows = [Row(params, seed=i, forbidden_ids={2}) for i in range(4)]
    assert Sampler().sample(rows, padded[:, :100]) == Sampler().sample(rows, padded[:, :100].copy())
    assert (padded == before).all()


def test_wrong_arrays_are_refused() -> None:
    row = Row(SamplingParams(logprobs=1))
    for logits in (np.zeros((1, 4)), np.zeros((1, 0), np.float32), np.zeros((2, 4), np.float32)):
        with pytest.raises((TypeError, ValueError)):
            Sampler().sample([row], logits)
    with pytest.raises(ValueError, match="contiguous"):
        Sampler().sample([row], np.zeros((4, 1, 2), np.float32)[:, :, 0].T)
    with pytest.raises(ValueError, match="vocabulary"):
        _native.logprobs_of(np.zeros((1, 4), np.float32), np.array([4], np.int32))


# --- greedy, forbidden ids, failures ---


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    for at in (0, 63, 64, 100, 1999):
        logits = np.zeros(2000, np.float32)
        logits[at:] = 1
        assert sample(Row(SamplingParams(temperature=0.0)), logits).token_id == at
    assert sample(Row(SamplingParams(temperature=0.0)), [0.0, -0.0, -1]).token_id == 0


def test_plain_greedy_and_the_full_path_agree() -> None:
    logits = np.stack([random_logits(i, 777) for i in range(5)])
    plain = Sampler().sample([Row(SamplingParams(temperature=0.0)) for _ in range(5)], logits)
    full = Sampler().sample([Row(SamplingParams(temperature=0.0), forbidden_ids={776}) for _ in range(5)], logits)
    assert plain == full


def test_forbidden_ids_are_never_drawn_and_may_lie_outside_the_vocabulary() -> None:
    row = Row(SamplingParams(temperature=0.0, logit_bias={1: 3.0}), forbidden_ids=frozenset({1, 900, -5}))
    assert sample(row, [0, 5, 1]).token_id == 2
    row.forbidden_ids = frozenset()
    assert sample(row, [0, 5, 1]).token_id == 1


def test_a_row_without_a_possible_token_fails_alone() -> None:
    logits = np.array([[NAN, NAN], [1, 2], [-INF, NAN], [3, 2]], dtype=np.float32)
    for params in (SamplingParams(temperature=0.0), SamplingParams(top_k=1), SamplingParams(logprobs=1)):
        rows = [Row(params) for _ in range(4)]
        rows[3].forbidden_ids = {0, 1}
        results = Sampler().sample(rows, logits)
        assert [isinstance(result, Sampled) for result in results] == [False, True, False, False]
        assert isinstance(results[0], SamplingFailure) and "NaN" in str(results[0].error)


def test_a_bias_outside_the_vocabulary_fails_its_row_alone() -> None:
    rows = [Row(SamplingParams(logit_bias={token: 1.0})) for token in (5, 1, -1, 1 << 40)]
    results = Sampler().sample(rows, np.zeros((4, 5), np.float32))
    assert [isinstance(result, Sampled) for result in results] == [False, True, False, False]
    assert isinstance(results[0], SamplingFailure)
    assert isinstance(results[0].error, InvalidRequestError) and results[0].error.param == "logit_bias"


def test_history_ids_outside_the_vocabulary_are_ignored() -> None:
    row = Row(SamplingParams(repetition_penalty=9.0, temperature=0.0), token_ids=[0, 70, -1], prompt_length=1)
    assert sample(row, [5, 3]).token_id == 1


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.1}, {"typical_p": 0.2}])
@pytest.mark.parametrize("logits", [[3.0], [INF], [-3.4e38], [1e-45]], ids=str)
def test_a_vocabulary_of_one(fields: dict[str, Any], logits: list[float]) -> None:
    assert sample(Row(SamplingParams(**fields, logprobs=5)), logits) == (0, 0.0, 1, ((0, 0.0),))


# --- log-probabilities ---


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


@pytest.mark.parametrize("vocabulary", [2, 65, 1000, 49152])
@pytest.mark.parametrize("spread", [0.01, 3.0, 30.0, 1e6])
def test_logprobs_are_those_of_the_raw_logits(vocabulary: int, spread: float) -> None:
    logits = random_logits(vocabulary, vocabulary, spread)
    wanted = log_softmax(logits)
    params = SamplingParams(temperature=1.5, logprobs=20, logit_bias={1: 4.0}, repetition_penalty=1.5)
    result = sample(Row(params), logits)
    assert result.logprob == pytest.approx(wanted[result.token_id], rel=1e-6, abs=1e-6)
    assert result.rank == 1 + (logits > logits[result.token_id]).sum()
    best = np.lexsort((np.arange(vocabulary), -logits))[:20]
    assert [token for token, _ in result.top] == best.tolist()
    assert [logprob for _, logprob in result.top] == pytest.approx(wanted[best], rel=1e-6, abs=1e-6)


def test_equal_logits_share_a_rank_and_are_listed_by_id() -> None:
    (result,) = Sampler().score(np.array([[1, 2, 2, 0, 2]], np.float32), np.array([4], np.int32), 4)
    assert result.rank == 1
    assert [token for token, _ in result.top] == [1, 2, 4, 0]
    (result,) = Sampler().score(np.array([[1, 2, 2, 0, 2]], np.float32), np.array([0], np.int32), 0)
    assert result.rank == 4 and result.top == ()


def test_no_logprobs_unless_asked_for() -> None:
    assert sample(Row(SamplingParams(top_k=1)), [0, 1]) == Sampled(1)
    assert sample(Row(SamplingParams(top_k=1, logprobs=0)), [0, 1]).top == ()
    assert sample(Row(SamplingParams(top_k=1, logprobs=0)), [0, 1]).rank == 1


def test_scores_of_hostile_rows() -> None:
    logits = np.array([[NAN, -INF, NAN], [INF, 1, INF], [NAN, 1, -INF], [1e38, -1e38, 1e38]], np.float32)
    nothing, infinite, partly, huge = Sampler().score(logits, np.array([0, 0, 0, 2], np.int32), 3)
    assert math.isnan(nothing.logprob or 0.0) and nothing.rank == 0 and nothing.top == ()
    assert infinite.logprob == pytest.approx(-math.log(2)) and [token for token, _ in infinite.top] == [0, 2]
    assert partly.logprob == -INF and partly.rank == 2 and partly.top == ((1, 0.0),)
    assert huge.logprob == pytest.approx(-math.log(2)) and huge.rank == 1
    assert _native.log_sum_exp(logits[1]) == INF and math.isnan(_native.log_sum_exp(logits[0]))


def test_score_and_logprobs_of_agree() -> None:
    logits = random_logits(1, 64 * 500).reshape(64, 500)
    targets = np.arange(64, dtype=np.int32) * 7
    scored = [result.logprob for result in Sampler().score(logits, targets, 0)]
    assert _native.logprobs_of(logits, targets).tolist() == scored
    assert scored == pytest.approx([log_softmax(row)[t] for row, t in zip(logits, targets, strict=True)], rel=1e-6)
