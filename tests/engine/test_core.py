from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.engine.collect import Collector
from sixfold.errors import ContextLengthError, InvalidRequestError
from sixfold.types import FinishedStats, SamplingParams, StepStats
from tests.fakes import EOS, FakeExecutor, FakeTokenizer, fake_logits, make_core


def submit(core, name, prompt, params, priority=0, arrival=0.0, salt=None):
    core.add(core.limits.accept(name, list(prompt), params, priority=priority, arrival=arrival, cache_salt=salt))


def drain(core, collectors=None, limit=20_000):
    """Steps until nothing is left, checking the cache after every step: outputs by request."""
    collectors = {} if collectors is None else collectors
    for _ in range(limit):
        if not core.has_work:
            break
        step(core, collectors)
    assert not core.has_work, "the engine did not finish"
    assert core.cache.num_free == core.cache.num_pages
    return {name: collector.result() for name, collector in collectors.items()}


def step(core, collectors):
    for output in core.step():
        collectors.setdefault(output.request_id, Collector()).add(output)
    core.cache.check_integrity()


def alone(prompt, params):
    core = make_core(num_pages=256, max_num_batched_tokens=4096, prefix_cache=False)
    submit(core, "alone", prompt, params)
    return drain(core)["alone"]


def same(one, other):
    return one.outputs == other.outputs and one.prompt_logprobs == other.prompt_logprobs


# Same tokens, always.

TOKENS = st.integers(0, 255)


@dataclass(frozen=True)
class Arrival:
    step: int
    prompt: tuple[int, ...]
    params: SamplingParams
    priority: int
    salt: str | None


@st.composite
def arrivals(draw):
    length = draw(st.integers(1, 70))
    generated = draw(st.integers(1, 40))
    params = SamplingParams(
        n=draw(st.integers(1, 3)),
        temperature=draw(st.sampled_from([0.0, 1.0])),
        max_tokens=generated,
        min_tokens=draw(st.integers(0, min(generated, 3))),
        seed=draw(st.integers(0, 5)),
        ignore_eos=draw(st.booleans()),
        logprobs=draw(st.sampled_from([None, 2])),
        prompt_logprobs=draw(st.sampled_from([None, None, 1])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
    )
    # few beginnings, so that prompts share them, and leave them anywhere
    prompt = np.random.default_rng(draw(st.sampled_from([0, 1]))).integers(0, 256, length)
    prompt[draw(st.integers(0, length)) :] += draw(st.sampled_from([0, 1]))
    salt = draw(st.sampled_from([None, None, "salt"]))
    return Arrival(draw(st.integers(0, 20)), tuple((prompt % 256).tolist()), params, draw(st.integers(0, 1)), salt)


@settings(max_examples=100, deadline=None)
@given(
    requests=st.lists(arrivals(), min_size=1, max_size=6),
    num_pages=st.integers(8, 30),
    budget=st.integers(1, 80),
    seats=st.integers(1, 8),
    prefix_cache=st.sampled_from([True, True, False]),
)
def test_same_tokens_in_any_company(requests, num_pages, budget, seats, prefix_cache):
    """Any batch, arrivals, chunks, seats, memory (small: preemptions) and cache give what running alone gives."""
    core = make_core(
        num_pages=num_pages, max_num_batched_tokens=budget, max_num_seqs=seats, prefix_cache=prefix_cache
    )  # fmt: skip
    collectors = {}
    for at in range(21):
        for number, request in enumerate(requests):
            if request.step == at:
                submit(
                    core, str(number), request.prompt, request.params, request.priority, float(at), request.salt
                )  # fmt: skip
        step(core, collectors)
    results = drain(core, collectors)
    for number, request in enumerate(requests):
        assert same(results[str(number)], alone(request.prompt, request.params))


def test_preemption_is_forced_and_changes_nothing():
    core = make_core(num_pages=12)
    prompts = [[i] * 30 for i in range(6)]
    params = SamplingParams(max_tokens=100, ignore_eos=True, seed=3, logprobs=1)
    for i, prompt in enumerate(prompts):
        submit(core, str(i), prompt, params)
    results = drain(core)
    assert core.scheduler.preemptions > 5
    assert all(same(results[str(i)], alone(prompt, params)) for i, prompt in enumerate(prompts))


def test_greedy_tokens_are_the_models():
    output = alone([1, 2, 3], SamplingParams(temperature=0.0, max_tokens=50, ignore_eos=True)).outputs[0]
    tokens = [1, 2, 3]
    for token in output.token_ids:
        assert token == int(np.argmax(fake_logits(tokens)))
        tokens.append(token)


def test_a_wrong_page_would_be_noticed():
    """The fake is worth something: without the copies that a fork asks for, tokens change."""
    executor = FakeExecutor(64)
    executor.copy_pages = lambda sources, targets: None
    core = make_core(executor=executor)
    params = SamplingParams(n=2, max_tokens=20, ignore_eos=True, seed=1)
    submit(core, "a", [7] * 20, params)
    assert not same(drain(core)["a"], alone([7] * 20, params))


# n > 1


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_choices_share_the_prompt_pages(prefix_cache):
    core = make_core(num_pages=64, prefix_cache=prefix_cache)
    submit(core, "a", [5] * 100, SamplingParams(n=4, max_tokens=5, ignore_eos=True, seed=1))
    collectors = {}
    step(core, collectors)
    step(core, collectors)
    stats = core.stats()
    assert stats.running == 4
    assert stats.kv_pages_shared == 6  # 99 tokens: 6 full pages shared, the 7th copied by each
    assert stats.kv_pages_used == 6 + 4
    result = drain(core, collectors)["a"]
    assert len({choice.token_ids for choice in result.outputs}) == 4
    assert sum(int(batch.counts.sum()) for batch in core.runner.executor.batches) == 100 + 3 + 4 * 4


def test_choices_whose_sibling_is_gone_run_the_prompt_themselves():
    core = make_core(num_pages=64, max_num_seqs=1)
    params = SamplingParams(n=3, max_tokens=3, ignore_eos=True, seed=1)
    submit(core, "a", [5] * 20, params)
    assert same(drain(core)["a"], alone([5] * 20, params))


# Prefixes that are known


def test_the_history_of_a_conversation_is_evaluated_once():
    core = make_core(num_pages=256)
    params = SamplingParams(max_tokens=20, ignore_eos=True, seed=1)
    history, ran = list(range(50)), []
    for turn in range(5):
        before = sum(len(batch.tokens) for batch in core.runner.executor.batches)
        submit(core, str(turn), history, params)
        output = drain(core)[str(turn)]
        assert same(output, alone(history, params))
        ran.append(sum(len(batch.tokens) for batch in core.runner.executor.batches) - before)
        assert output.num_cached_tokens == (len(history) - 31 if turn else 0)
        history += [*output.outputs[0].token_ids, *range(100 + turn, 130 + turn)]
    # 19 of the 20 new tokens are run; the last one belongs to the next turn
    assert ran == [50 + 19, *[1 + 30 + 19] * 4]
    stats = core.stats()
    assert stats.prefix_queries == 50 + 100 + 150 + 200 + 250
    assert stats.prefix_hits == stats.prefix_queries - 50 - 4 * 31


def test_a_cached_prompt_with_choices():
    core = make_core(num_pages=64)
    params = SamplingParams(n=3, max_tokens=12, ignore_eos=True, seed=5, logprobs=1)
    for name in "ab":
        submit(core, name, [7] * 40, params)
        output = drain(core)[name]
        assert same(output, alone([7] * 40, params))
        assert output.num_cached_tokens == (0 if name == "a" else 39)


def test_without_the_cache_nothing_is_looked_for_or_kept():
    core = make_core(prefix_cache=False)
    params = SamplingParams(max_tokens=5, ignore_eos=True, seed=1)
    for name in "ab":
        submit(core, name, [7] * 40, params)
        assert drain(core)[name].num_cached_tokens is None
    core.reset_prefix_cache()
    stats = core.stats()
    assert (stats.kv_pages_cached, stats.kv_pages_free, stats.prefix_queries, stats.prefix_hits) == (0, 64, 0, 0)


def test_a_reset_forgets_and_disturbs_nobody():
    core = make_core()
    params = SamplingParams(max_tokens=30, ignore_eos=True, seed=1)
    submit(core, "a", [7] * 40, params)
    collectors = {}
    for _ in range(10):
        step(core, collectors)
    core.reset_prefix_cache()
    core.cache.check_integrity()
    assert same(drain(core, collectors)["a"], alone([7] * 40, params))
    assert core.stats().kv_pages_cached == 0
    submit(core, "b", [7] * 40, params)
    assert drain(core)["b"].num_cached_tokens == 0


def test_scored_prompts_are_run_whole_also_when_they_are_known():
    core = make_core(num_pages=64)
    params = SamplingParams(max_tokens=3, prompt_logprobs=1, seed=1)
    for name in "ab":
        submit(core, name, [7] * 100, params)
        output = drain(core)[name]
        assert same(output, alone([7] * 100, params)) and output.num_cached_tokens == 0


def test_waste_is_measured_over_the_time_of_the_steps():
    core = make_core(num_pages=64)
    assert core.stats().kv_waste == 0
    submit(core, "a", [7] * 40, SamplingParams(max_tokens=5, ignore_eos=True))
    drain(core)
    stats = core.stats()
    assert 4 / 48 < stats.kv_waste < 8 / 48 + 0.02  # 3 pages that hold 40 to 44 tokens, and the notes about them
    assert stats.kv_waste == pytest.approx(stats.kv_wasted_byte_seconds / stats.kv_allocated_byte_seconds)
    assert (stats.kv_pages_used, stats.kv_pages_cached, stats.kv_empty_slots) == (0, 3, 4)


# Stopping


def test_end_of_sequence_and_stop_ids():
    greedy = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    free = alone([9, 9], greedy).outputs[0]
    stop_id = free.token_ids[4]
    stopped = alone([9, 9], SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, stop_token_ids=(stop_id,)))
    output = stopped.outputs[0]
    first = free.token_ids.index(stop_id)
    assert output.token_ids == free.token_ids[: first + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop_id)
    assert output.text == free.text[:first]
    ended = alone([9, 9], SamplingParams(max_tokens=30, logit_bias={EOS: 100.0})).outputs[0]
    assert (ended.token_ids, ended.finish_reason, ended.stop_reason, ended.text) == ((EOS,), "stop", None, "")


def test_min_tokens_holds_the_end_back():
    output = alone([1], SamplingParams(max_tokens=30, min_tokens=7, logit_bias={EOS: 100.0})).outputs[0]
    assert len(output.token_ids) == 8
    assert output.token_ids[-1] == EOS


def test_stop_strings_over_several_tokens():
    free = alone(b"x", SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)).outputs[0]
    stop = free.text[10:14]
    output = alone(b"x", SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, stop=(stop,))).outputs[0]
    assert output.text == free.text[: free.text.index(stop)]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert output.token_ids == free.token_ids[: len(output.token_ids)]


def test_text_that_was_held_back_is_shown_at_the_end():
    free = alone(b"x", SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)).outputs[0]
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, stop=(free.text[-2:] + "never",))
    assert alone(b"x", params).outputs[0].text == free.text


def test_length_by_max_tokens_and_by_the_context():
    assert alone([1], SamplingParams(max_tokens=5, ignore_eos=True)).outputs[0].finish_reason == "length"
    core = make_core(max_model_len=40)
    submit(core, "a", [1] * 30, SamplingParams(max_tokens=None, ignore_eos=True))
    output = drain(core)["a"].outputs[0]
    assert (len(output.token_ids), output.finish_reason) == (10, "length")


# Prompt log-probabilities


def test_prompt_logprobs_are_the_models_and_asked_for_in_blocks():
    core = make_core(num_pages=64, max_num_batched_tokens=400)
    prompt = np.random.default_rng(1).integers(0, 256, 200).tolist()
    submit(core, "a", prompt, SamplingParams(max_tokens=1, prompt_logprobs=1))
    result = drain(core)["a"]
    assert core.runner.executor.largest_logits <= 64
    assert len(result.prompt_logprobs) == 200
    assert result.prompt_logprobs[0] is None
    for position in range(1, 200):
        logits = fake_logits(prompt[:position]).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum())
        scored = result.prompt_logprobs[position]
        assert scored.chosen.token_id == prompt[position]
        assert scored.chosen.logprob == pytest.approx(logprobs[prompt[position]], abs=1e-5)
        assert scored.chosen.rank == 1 + int((logits > logits[prompt[position]]).sum())
        assert scored.top[0].logprob == pytest.approx(logprobs.max(), abs=1e-5)


def test_prompt_logprobs_of_one_token():
    assert alone([1], SamplingParams(max_tokens=1, prompt_logprobs=0)).prompt_logprobs == (None,)


# Abort and failure


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_abort_at_any_moment_frees_pages_and_disturbs_nobody(seed):
    random = np.random.default_rng(seed)
    core = make_core(num_pages=14, max_num_batched_tokens=int(random.integers(2, 60)))
    params = SamplingParams(n=2, max_tokens=30, ignore_eos=True, seed=seed)
    prompts = {str(i): [i] * int(random.integers(1, 60)) for i in range(6)}
    for name, prompt in prompts.items():
        submit(core, name, prompt, params)
    collectors = {}
    aborted = set()
    for _ in range(12):
        for _ in range(int(random.integers(0, 6))):
            step(core, collectors)
        name = str(random.integers(0, 6))
        output = core.abort(name)
        core.cache.check_integrity()
        if output is not None:
            assert output.finished
            assert {choice.finish_reason for choice in output.outputs} == {"abort"}
            aborted.add(name)
    results = drain(core, collectors)
    for name in prompts.keys() - aborted:
        assert same(results[name], alone(prompts[name], params))


def test_abort_of_an_unknown_request_is_nothing():
    assert make_core().abort("nobody") is None


def test_a_failed_step_ends_what_was_in_it_and_nothing_else(caplog):
    steps = count()
    executor = FakeExecutor(64, fail_when=lambda batch: next(steps) == 3)
    core = make_core(executor=executor, max_num_seqs=2)
    params = SamplingParams(max_tokens=10, ignore_eos=True, seed=1)
    for i in range(4):
        submit(core, str(i), [i] * 5, params)
    with caplog.at_level(logging.CRITICAL, logger="sixfold"):
        results = drain(core)
    for i in range(2):
        assert results[str(i)].outputs[0].finish_reason == "error"
        assert "on fire" in results[str(i)].outputs[0].stop_reason
        assert len(results[str(i)].outputs[0].token_ids) == 3
    for i in range(2, 4):
        assert same(results[str(i)], alone([i] * 5, params))


def test_trouble_with_one_requests_text_ends_that_request_only(caplog):
    params = SamplingParams(n=2, max_tokens=12, ignore_eos=True, seed=1)
    good = alone([2] * 5, params)
    bad = alone([1] * 5, params)
    poison = next(
        token
        for token in bad.outputs[0].token_ids
        if token not in good.outputs[0].token_ids + good.outputs[1].token_ids
    )
    core = make_core(tokenizer=FakeTokenizer(poison))
    submit(core, "bad", [1] * 5, params)
    submit(core, "good", [2] * 5, params)
    with caplog.at_level(logging.CRITICAL, logger="sixfold"):
        results = drain(core)
    assert "error" in {choice.finish_reason for choice in results["bad"].outputs}
    assert results["bad"].finished
    assert same(results["good"], good)


def test_a_request_that_leaves_no_token_possible_fails_alone(caplog):
    core = make_core()
    core.runner.executor.logits = lambda rows: np.full((len(rows), 260), np.nan, np.float32)
    submit(core, "a", [1], SamplingParams(max_tokens=3))
    with caplog.at_level(logging.CRITICAL, logger="sixfold"):
        output = drain(core)["a"].outputs[0]
    assert (output.finish_reason, output.token_ids) == ("error", ())
    assert "No token can be sampled" in output.stop_reason
    assert core.stats().generation_tokens == 0


# Limits


@pytest.mark.parametrize(
    ("prompt", "params", "error", "says"),
    [
        ([], {}, InvalidRequestError, "empty"),
        ([260], {}, InvalidRequestError, "0 to 259"),
        ([-1], {}, InvalidRequestError, "-1"),
        ([1], {"logit_bias": {999: 1.0}}, InvalidRequestError, "logit_bias"),
        ([1] * 90, {"max_tokens": 11}, ContextLengthError, "max_model_len"),
        ([1] * 100, {"max_tokens": None}, ContextLengthError, "100 tokens"),
        ([1] * 40, {"max_tokens": 26}, ContextLengthError, "kv_memory"),
        ([1] * 65, {"max_tokens": None}, ContextLengthError, "4 pages of 16"),
    ],
)
def test_what_can_never_run_is_refused(prompt, params, error, says):
    core = make_core(num_pages=4, max_model_len=100)
    with pytest.raises(error, match=says) as raised:
        core.limits.accept("a", prompt, SamplingParams(**params))
    assert raised.value.remedy
    assert raised.value.param


@pytest.mark.parametrize("salt", ["", "x" * 257])
def test_a_salt_has_a_length(salt):
    with pytest.raises(InvalidRequestError, match="cache_salt"):
        make_core().limits.accept("a", [1], SamplingParams(), cache_salt=salt)


def test_the_longest_request_that_is_accepted_can_finish():
    core = make_core(num_pages=4, max_model_len=100)
    submit(core, "a", [1] * 40, SamplingParams(max_tokens=25, ignore_eos=True))
    submit(core, "b", [2] * 64, SamplingParams(max_tokens=1, ignore_eos=True))
    results = drain(core)
    assert len(results["a"].outputs[0].token_ids) == 25
    assert len(results["b"].outputs[0].token_ids) == 1


def test_seeds_are_drawn_from_the_engines_seed():
    def run(seed):
        core = make_core(seed=seed)
        for i in range(3):
            submit(core, str(i), [1], SamplingParams(max_tokens=8, ignore_eos=True))
        return [drain_one.outputs[0].token_ids for drain_one in drain(core).values()]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert len(set(run(1))) == 3


def test_an_id_in_use_is_refused():
    core = make_core()
    submit(core, "a", [1], SamplingParams())
    with pytest.raises(InvalidRequestError, match="in use"):
        submit(core, "a", [1], SamplingParams())


# What listeners are told


class Listener:
    def __init__(self) -> None:
        self.steps: list[StepStats] = []
        self.finished: list[FinishedStats] = []

    def on_step(self, stats):
        self.steps.append(stats)

    def on_request_finished(self, stats):
        self.finished.append(stats)
        raise RuntimeError("a listener's trouble is its own")


def test_listeners_are_told_and_cannot_disturb(caplog):
    listener = Listener()
    core = make_core(listener=listener)
    submit(core, "a", [1] * 10, SamplingParams(n=2, max_tokens=6, ignore_eos=True))
    with caplog.at_level(logging.CRITICAL, logger="sixfold"):
        drain(core)
    assert sum(s.generation_tokens for s in listener.steps) == 12
    assert sum(s.prompt_tokens for s in listener.steps) == 10
    assert sum(len(s.first_token_latencies) for s in listener.steps) == 2
    assert sum(len(s.inter_token_latencies) for s in listener.steps) == 10
    assert [(s.index, s.finish_reason, s.generation_tokens) for s in listener.finished] == [
        (0, "length", 6),
        (1, "length", 6),
    ]
    for stats in listener.finished:
        assert stats.first_scheduled <= stats.first_token <= stats.finished
    stats = core.stats()
    assert (stats.finished, stats.prompt_tokens, stats.generation_tokens, stats.queued) == (2, 10, 12, 0)
