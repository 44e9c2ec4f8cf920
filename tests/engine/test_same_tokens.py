"""Same tokens, always: a request's tokens and log-probabilities, bit for bit, whatever runs beside it.

The plain path is one request alone, its prompt in one chunk, one thread, no cache. Everything else must equal it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sixfold.compile import Plan, build
from sixfold.engine.collect import Collector
from sixfold.engine.core import EngineCore
from sixfold.engine.prefix_key import PrefixRoot
from sixfold.engine.prompt_lookup import Draft, PromptLookup
from sixfold.engine.sequence import Sequence
from sixfold.engine.speculation import Drafter, Speculation
from sixfold.runtime.native import NativeExecutor
from sixfold.types import RequestOutput, SamplingParams
from sixfold.weights.model_file import ModelFile, open_model
from tests.fakes import FakeTokenizer
from tests.tiny_models import write_gguf

Prompts = list[tuple[list[int], SamplingParams]]


class Subject(NamedTuple):
    """What is run: tokens are the same for the same model and KV format."""

    plan: Plan
    kv_format: str = "f16"


def centres(plan: Plan) -> np.ndarray:
    """Of int4 layers; any will do."""
    sizes = plan.meta["sizes"]
    shape = sizes["layers"], sizes["kv_heads"], sizes["head_size"]
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def core(
    subject: Subject, *, threads: int = 1, pages: int = 400, budget: int = 512, seqs: int = 64, cached: bool = False,
    drafter: Drafter | None = None,
) -> EngineCore:  # fmt: skip
    plan, kv_format = subject
    executor = NativeExecutor(
        plan, num_pages=pages, max_tokens=budget, threads=threads, kv_format=kv_format, key_centres=centres(plan),
        max_sequences=seqs,
    )  # fmt: skip
    return EngineCore(
        executor, FakeTokenizer(), max_model_len=min(plan.context, 2048), max_num_seqs=seqs,
        max_num_batched_tokens=budget, prefix_root=PrefixRoot("plan") if cached else None,
        speculation=None if drafter is None else Rash(drafter),
    )  # fmt: skip


class Rash(Speculation):
    """Drafts whatever it can, whether it pays or not."""

    def __init__(self, drafter: Drafter) -> None:
        super().__init__(drafter)
        self._cost.share_of_a_row = lambda sequences: 0.0  # type: ignore[method-assign]


class Oracle:
    """A drafter that knows what comes, and is wrong at every fifth position all the same."""

    def __init__(self, wanted: list[object]) -> None:
        self._wanted = wanted

    def propose(self, sequence: Sequence, count: int, /) -> Draft:
        answers = self._wanted[int(sequence.request.id)][1]  # type: ignore[index]
        at = sequence.num_generated
        known = answers[sequence.index][1][at : at + count]
        return Draft(tuple(abs(token - ((at + i) % 5 == 4)) for i, token in enumerate(known)), 20)


def run(engine: EngineCore, prompts: Prompts, arrivals: list[int]) -> list[RequestOutput]:
    """Runs all; prompt i is added before step arrivals[i]."""
    collectors = [Collector() for _ in prompts]
    waiting = sorted(range(len(prompts)), key=lambda i: arrivals[i])
    step = 0
    while waiting or engine.has_work:
        while waiting and arrivals[waiting[0]] <= step:
            index = waiting.pop(0)
            ids, params = prompts[index]
            engine.add(engine.limits.accept(str(index), ids, dataclasses.replace(params, seed=index)))
        for output in engine.step():
            collectors[int(output.request_id)].add(output)
        engine.cache.check_integrity()
        step += 1
    return [collector.result() for collector in collectors]


def essence(output: RequestOutput) -> object:
    return (
        output.prompt_logprobs,
        [(o.index, o.token_ids, o.text, o.logprobs, o.finish_reason, o.stop_reason) for o in output.outputs],
    )


def alone(subject: Subject, prompts: Prompts) -> list[object]:
    results = []
    for index, (ids, params) in enumerate(prompts):
        engine = core(subject)
        engine.add(engine.limits.accept(str(index), ids, dataclasses.replace(params, seed=index)))
        collector = Collector()
        while engine.has_work:
            for output in engine.step():
                collector.add(output)
        results.append(essence(collector.result()))
    return results


SUBJECTS = [
    "llama-wide/Q4_0/f16", "gemma3-wide/Q4_K_M/f16", "qwen2/F32/f16", "qwen3/Q8_0/f16",
    "llama-wide/Q4_0/int8,0=f16", "gemma3-wide/Q4_K_M/int8", "qwen2/F32/int8",
    "llama-wide/Q4_0/int4", "gemma3-wide/Q4_K_M/int4,0=f16,1=int8",
]  # fmt: skip


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    kind, quant, kv_format = request.param.split("/")
    with open_model(write_gguf(kind, tmp_path_factory.mktemp("m") / "m.gguf", quant)) as model:
        yield Subject(build(model, cache=False), kv_format)


@st.composite
def workloads(draw: st.DrawFn) -> Prompts:
    """A few requests: greedy and sampled, short and long, some with choices, log-probabilities and penalties.

    Many begin like one before them, for any number of tokens.
    """
    prompts: Prompts = []
    for _ in range(draw(st.integers(1, 7))):
        ids = draw(st.lists(st.integers(0, 250), min_size=1, max_size=90))
        if prompts and draw(st.booleans()):
            before = draw(st.sampled_from(prompts))[0]
            ids = (before[: draw(st.integers(0, len(before)))] + ids)[:90]
        greedy = draw(st.booleans())
        params = SamplingParams(
            temperature=0.0 if greedy else draw(st.sampled_from([0.7, 1.0, 1.5])),
            top_p=draw(st.sampled_from([1.0, 0.9])),
            repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
            n=draw(st.sampled_from([1, 1, 2, 3])),
            logprobs=draw(st.sampled_from([None, 0, 3])),
            prompt_logprobs=draw(st.sampled_from([None, None, 1])),
            max_tokens=draw(st.integers(1, 40)),
            ignore_eos=True,
        )
        prompts.append((ids, params))
    return prompts


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=workloads(), data=st.data())
def test_batches_chunks_threads_and_preemption_change_no_bit(
    subject: Subject, prompts: Prompts, data: st.DataObject
) -> None:
    wanted = alone(subject, prompts)
    arrivals = [data.draw(st.integers(0, 20)) for _ in prompts]
    longest = max(len(ids) + (params.max_tokens or 0) for ids, params in prompts)
    tight = longest // 16 + 2  # pages: hardly more than one sequence needs, so others are preempted
    engine = core(
        subject,
        threads=data.draw(st.sampled_from([1, 2, 3])),
        pages=data.draw(st.sampled_from([tight, 2 * tight, 400])),
        budget=data.draw(st.sampled_from([1, 5, 16, 33, 512])),
        seqs=data.draw(st.sampled_from([1, 3, 64])),
        cached=data.draw(st.booleans()),
        drafter=data.draw(st.sampled_from([None, PromptLookup(), Oracle(wanted)])),
    )
    got = [essence(output) for output in run(engine, prompts, arrivals)]
    assert got == wanted
    assert engine.cache.num_free == engine.cache.num_pages, "pages were lost"


@pytest.mark.model
@pytest.mark.parametrize("kv_format", ["f16", "int8", "int4,0-1=int8"])
def test_smollm2_in_a_crowd_writes_what_it_writes_alone(smollm2: ModelFile, kv_format: str) -> None:
    subject = Subject(build(smollm2), kv_format)
    rng = random.Random(0)
    prompts: Prompts = [
        (
            [rng.randrange(3, 49000) for _ in range(rng.randrange(1, 120))],
            SamplingParams(temperature=0.0 if i % 2 else 0.8, max_tokens=16, logprobs=2, n=1 + i % 2),
        )
        for i in range(12)
    ]
    wanted = alone(subject, prompts)
    engine = core(subject, threads=2, pages=40, budget=48)  # too few pages for all: some are preempted
    got = run(engine, prompts, [rng.randrange(10) for _ in prompts])
    assert engine.scheduler.preemptions > 0
    assert [essence(output) for output in got] == wanted


def test_a_known_beginning_changes_no_bit(subject: Subject) -> None:
    """Every length of a known beginning: within a page and at its border, whole, beyond where attention splits keys."""
    rng = random.Random(2)
    known = [rng.randrange(250) for _ in range(150)]
    params = SamplingParams(temperature=0.9, max_tokens=6, logprobs=2, ignore_eos=True)
    prompts: Prompts = [(known, params)]
    for length in (1, 15, 16, 17, 31, 32, 127, 128, 129, 149, 150):
        prompts.append((known[:length] + [rng.randrange(250) for _ in range(rng.choice((1, 5, 40)))], params))
    engine = core(subject, threads=2, cached=True)
    where = engine.runner.executor.resumption
    for index, prompt in enumerate(prompts):
        (output,) = run(engine, [prompt], [0])
        assert essence(output) == alone(subject, [prompt])[0]
        common = 0
        while index and common < min(len(known), len(prompt[0]) - 1) and prompt[0][common] == known[common]:
            common += 1
        assert output.num_cached_tokens is not None
        assert output.num_cached_tokens >= max(0, where.at_most(common) - where.again)


def test_many_that_begin_alike_change_no_bit(subject: Subject) -> None:
    """Two at a time, so that what is kept for running sequences alone is used again and again; the first page is
    common to all, whole first blocks to some, and pages are evicted."""
    rng = random.Random(4)
    first = [rng.randrange(250) for _ in range(70)]
    params = SamplingParams(temperature=0.9, max_tokens=30, logprobs=1, ignore_eos=True)
    scored = dataclasses.replace(params, prompt_logprobs=1)
    prompts: Prompts = []
    for index in range(24):
        own = [rng.randrange(250) for _ in range(rng.randrange(5, 80))]
        prompts.append((first[: rng.choice((16, 20, 40, 64, 70))] + own, scored if index % 7 == 3 else params))
    engine = core(subject, threads=2, pages=24, budget=rng.choice((7, 48)), seqs=2, cached=True)
    got = run(engine, prompts, [3 * index for index in range(len(prompts))])
    assert [essence(output) for output in got] == alone(subject, prompts)
    assert engine.prefixes.evictions > 0


@pytest.mark.model
@pytest.mark.parametrize("budget, kv_format", [(512, "f16"), (48, "f16"), (48, "int4")])
def test_a_conversation_of_smollm2_is_the_same_with_and_without_the_cache(
    smollm2: ModelFile, budget: int, kv_format: str
) -> None:
    """Turns of two conversations with one system prompt: also evaluated once only, and in chunks."""
    subject = Subject(build(smollm2), kv_format)
    rng = random.Random(3)
    system = [rng.randrange(3, 49000) for _ in range(45)]
    params = SamplingParams(temperature=0.7, max_tokens=20, logprobs=2, ignore_eos=True)
    cached, plain = (core(subject, threads=2, budget=budget, cached=cached) for cached in (True, False))
    for conversation in range(2):
        history = list(system)
        for turn in range(4):
            history += [rng.randrange(3, 49000) for _ in range(25)]
            (output,), (wanted,) = (run(engine, [(history, params)], [0]) for engine in (cached, plain))
            assert essence(output) == essence(wanted)
            known, where = len(history) - 26 if turn else 45 * conversation, cached.runner.executor.resumption
            assert output.num_cached_tokens == max(0, where.at_most(known) - where.again)
            history += output.outputs[0].token_ids


@pytest.mark.model
def test_a_crowd_on_smollm2_is_the_same_with_the_cache(smollm2: ModelFile) -> None:
    """Shared beginnings, several choices, chunks, and too little memory: some are preempted, pages are evicted."""
    subject = Subject(build(smollm2))
    rng = random.Random(4)
    known = [rng.randrange(3, 49000) for _ in range(70)]
    prompts: Prompts = [
        (
            known[: rng.randrange(71)] + [rng.randrange(3, 49000) for _ in range(rng.randrange(1, 50))],
            SamplingParams(temperature=0.8 * (i % 2), max_tokens=24, logprobs=2, n=1 + i % 3, ignore_eos=True),
        )
        for i in range(16)
    ]
    wanted = alone(subject, prompts)
    engine = core(subject, threads=2, pages=30, budget=48, cached=True)
    got = run(engine, prompts, [rng.randrange(60) for _ in prompts])
    assert engine.scheduler.preemptions > 0 and engine.prefixes.evictions > 0 and engine.prefixes.hits > 100
    assert [essence(output) for output in got] == wanted


def test_long_contexts_split_the_same_way_in_decode_and_prefill(subject: Subject) -> None:
    """Past 128 keys attention is split: a token decoded one by one equals the same token prefilled in a chunk."""
    rng = random.Random(1)
    ids = [rng.randrange(250) for _ in range(200)]
    params = SamplingParams(temperature=0.0, max_tokens=40, logprobs=0, ignore_eos=True)
    (whole,) = run(core(subject), [(ids, params)], [0])
    grown = ids + list(whole.outputs[0].token_ids[:-1])
    score = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, logprobs=0, ignore_eos=True)
    (prefilled,) = run(core(subject, threads=2), [(grown, score)], [0])
    assert whole.outputs[0].logprobs is not None
    assert prefilled.prompt_logprobs is not None
    decoded = [entry.chosen.logprob for entry in whole.outputs[0].logprobs[:-1]]
    assert decoded == [entry.chosen.logprob for entry in prefilled.prompt_logprobs[200:] if entry is not None]


@pytest.mark.parametrize("kv_format", ["f16", "int8", "int4"])
def test_drafts_that_come_true_and_others_change_no_bit(
    kv_format: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Past several blocks of int4's float16 pages; greedy and sampled, with everything that looks back."""
    with open_model(write_gguf("llama-wide", tmp_path_factory.mktemp("m") / "m.gguf", "Q4_0")) as model:
        subject = Subject(build(model, cache=False), kv_format)
    rng = random.Random(5)
    prompts: Prompts = [
        (
            [rng.randrange(250) for _ in range(rng.randrange(1, 150))],
            SamplingParams(
                temperature=0.9 * (i % 2), max_tokens=100, logprobs=2 if i % 3 else None, ignore_eos=i % 4 > 0,
                min_tokens=20, frequency_penalty=0.5 * (i == 3), dry_multiplier=0.8 * (i == 5), logit_bias={7: 3.0},
            ),
        )
        for i in range(8)
    ]  # fmt: skip
    wanted = alone(subject, prompts)
    engine = core(subject, threads=2, budget=64, drafter=Oracle(wanted))
    got = run(engine, prompts, [i // 2 for i in range(8)])
    assert [essence(output) for output in got] == wanted
    counts = engine.speculation
    assert 100 < counts.accepted < counts.drafted
    assert engine.totals.steps < 150
