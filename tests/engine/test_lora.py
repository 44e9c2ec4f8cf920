"""Adapters in the engine: same tokens whatever runs beside them, paging, names that come and go, failures."""

from __future__ import annotations

import dataclasses
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sixfold.compile import Plan, build
from sixfold.engine.adapter import Adapter
from sixfold.engine.collect import Collector
from sixfold.engine.core import EngineCore
from sixfold.engine.llm import LLM
from sixfold.engine.loader import read_native
from sixfold.engine.lora import Adapters, Content
from sixfold.engine.prefix_key import PrefixRoot
from sixfold.errors import ConfigError, InvalidRequestError, ModelFileError, ModelNotFoundError
from sixfold.runtime.native import NativeExecutor
from sixfold.types import RequestOutput, SamplingParams
from sixfold.weights.model_file import open_model
from tests.adapters import tiny_adapter
from tests.fakes import FakeExecutor, FakeTokenizer, make_core
from tests.tiny_models import write_gguf

NAMES = ("a", "b", "c")
Job = tuple[list[int], SamplingParams, str | None]


@pytest.fixture(scope="module", params=["llama-wide/Q4_0", "gemma3-wide/Q4_K_M", "qwen2/F32"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Plan, Path]]:
    kind, quant = request.param.split("/")
    folder = tmp_path_factory.mktemp("lora")
    tiny_adapter(folder / "a", kind, seed=1, rank=8)
    tiny_adapter(folder / "b", kind, seed=2, rank=3, names=["q_proj", "v_proj", "down_proj"], strength=2.0)
    tiny_adapter(folder / "c", kind, seed=3, rank=17, rank_pattern={"o_proj": 2})
    with open_model(write_gguf(kind, folder / "m.gguf", quant)) as model:
        yield build(model, cache=False), folder


def core(
    subject: tuple[Plan, Path], *, threads: int = 1, pages: int = 400, budget: int = 512, seqs: int = 64,
    cached: bool = False, slots: int = 3,
) -> EngineCore:  # fmt: skip
    plan, folder = subject
    executor = NativeExecutor(plan, num_pages=pages, max_tokens=budget, threads=threads)
    adapters = Adapters(executor, lambda path: read_native(path, plan), slots)
    for name in NAMES:
        adapters.load(name, folder / name)
    return EngineCore(
        executor, FakeTokenizer(), max_model_len=min(plan.context, 2048), max_num_seqs=seqs,
        max_num_batched_tokens=budget, prefix_root=PrefixRoot("plan") if cached else None, adapters=adapters,
    )  # fmt: skip


def run(engine: EngineCore, jobs: list[Job], arrivals: list[int]) -> list[RequestOutput]:
    collectors = [Collector() for _ in jobs]
    waiting = sorted(range(len(jobs)), key=lambda i: arrivals[i])
    step = 0
    while waiting or engine.has_work:
        while waiting and arrivals[waiting[0]] <= step:
            add(engine, str(index := waiting.pop(0)), jobs[index])
        for output in engine.step():
            collectors[int(output.request_id)].add(output)
        engine.cache.check_integrity()
        step += 1
    return [collector.result() for collector in collectors]


def add(engine: EngineCore, name: str, job: Job) -> None:
    ids, params, lora = job
    params = dataclasses.replace(params, seed=len(ids))
    engine.add(engine.limits.accept(name, ids, params, lora=engine.adapters.named(lora)))


def essence(output: RequestOutput) -> object:
    return output.prompt_logprobs, [(o.index, o.token_ids, o.logprobs, o.finish_reason) for o in output.outputs]


def alone(subject: tuple[Plan, Path], jobs: list[Job]) -> list[object]:
    return [essence(run(core(subject), [job], [0])[0]) for job in jobs]


@st.composite
def workloads(draw: st.DrawFn) -> list[Job]:
    jobs: list[Job] = []
    for _ in range(draw(st.integers(1, 7))):
        ids = draw(st.lists(st.integers(0, 250), min_size=1, max_size=80))
        if jobs and draw(st.booleans()):
            ids = (draw(st.sampled_from(jobs))[0] + ids)[:90]
        params = SamplingParams(
            temperature=draw(st.sampled_from([0.0, 1.0])), n=draw(st.sampled_from([1, 1, 2])),
            logprobs=draw(st.sampled_from([None, 2])), prompt_logprobs=draw(st.sampled_from([None, None, 1])),
            max_tokens=draw(st.integers(1, 20)), ignore_eos=True,
        )  # fmt: skip
        jobs.append((ids, params, draw(st.sampled_from([None, *NAMES]))))
    return jobs


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=workloads(), data=st.data())
def test_crowds_chunks_threads_preemption_and_paging_change_no_bit(
    subject: tuple[Plan, Path], jobs: list[Job], data: st.DataObject
) -> None:
    wanted = alone(subject, jobs)
    longest = max(len(ids) + (params.max_tokens or 0) for ids, params, _ in jobs)
    tight = longest // 16 + 2
    engine = core(
        subject,
        threads=data.draw(st.sampled_from([1, 2, 3])),
        pages=data.draw(st.sampled_from([tight, 2 * tight, 400])),
        budget=data.draw(st.sampled_from([1, 5, 33, 512])),
        seqs=data.draw(st.sampled_from([1, 3, 64])),
        cached=data.draw(st.booleans()),
        slots=data.draw(st.sampled_from([1, 2, 3])),
    )
    arrivals = [data.draw(st.integers(0, 12)) for _ in jobs]
    assert [essence(output) for output in run(engine, jobs, arrivals)] == wanted
    assert engine.cache.num_free == engine.cache.num_pages, "pages were lost"
    assert not engine.adapters.counts().running


def test_adapters_change_tokens_and_requests_without_one_are_as_ever(subject: tuple[Plan, Path]) -> None:
    ids = [random.Random(1).randrange(250) for _ in range(70)]
    params = SamplingParams(temperature=0.0, max_tokens=16, logprobs=1, ignore_eos=True)
    jobs: list[Job] = [(ids, params, name) for name in (None, *NAMES)]
    outputs = alone(subject, jobs)
    assert len({str(output) for output in outputs}) == 4
    executor = NativeExecutor(subject[0], num_pages=64, max_tokens=512, threads=1)
    plain = EngineCore(executor, FakeTokenizer(), max_model_len=200)
    assert essence(run(plain, jobs[:1], [0])[0]) == outputs[0]


def test_two_adapters_never_share_a_prefix(subject: tuple[Plan, Path]) -> None:
    engine = core(subject, cached=True)
    ids = [random.Random(2).randrange(250) for _ in range(100)]
    params = SamplingParams(temperature=0.0, max_tokens=4, logprobs=1, ignore_eos=True)
    wanted = {name: essence(run(core(subject), [(ids, params, name)], [0])[0]) for name in (None, *NAMES)}
    for known in (0, 96):
        for name in (None, *NAMES):
            (output,) = run(engine, [(ids, params, name)], [0])
            assert output.num_cached_tokens is not None and output.num_cached_tokens >= known
            assert known or output.num_cached_tokens == 0
            assert essence(output) == wanted[name]


def test_the_same_content_under_another_name_shares_one_prefix(subject: tuple[Plan, Path]) -> None:
    engine = core(subject, cached=True)
    engine.adapters.load("again", subject[1] / "a")
    ids = list(range(60))
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    assert run(engine, [(ids, params, "a")], [0])[0].num_cached_tokens == 0
    assert (run(engine, [(ids, params, "again")], [0])[0].num_cached_tokens or 0) > 40


# From here on the logic, on fakes.


class Shelf:
    """A reader of made-up adapters: slow ones while ``gate`` is clear, broken ones by name."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.broken: set[str] = set()
        self.version = "1"
        self.reads: list[str] = []

    def __call__(self, path: Path) -> Content:
        assert self.gate.wait(10)
        self.reads.append(path.name)
        if path.name in self.broken:
            raise ModelFileError(f"{path} is gone", remedy="Bring it back")
        return Content(path.name + self.version, 8, 100, object())


def fake(slots: int = 2, names: str = "abcd", **options: Any) -> tuple[EngineCore, Shelf, FakeExecutor]:
    executor, shelf = FakeExecutor(64), Shelf()
    adapters = Adapters(executor, shelf, slots)
    for name in names:
        adapters.load(name, Path(name))
    shelf.reads.clear()
    return make_core(executor=executor, adapters=adapters, **options), shelf, executor


PARAMS = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)


def finish(engine: EngineCore) -> dict[str, str | None]:
    reasons = {}
    while engine.has_work:
        for output in engine.step():
            if output.finished:
                reasons[output.request_id] = output.outputs[0].finish_reason
    return reasons


def test_more_adapters_than_slots_take_turns() -> None:
    engine, shelf, executor = fake()
    for i, name in enumerate("abcdabcd"):
        add(engine, str(i), ([1, 2, i], PARAMS, name))
    assert set(finish(engine).values()) == {"length"} and len(engine.scheduler.running) == 0
    for batch in executor.batches:
        assert set(batch.adapters.tolist()) <= {0, 1}
    counts = engine.adapters.counts()
    assert (counts.resident, counts.slots, counts.running) == (2, 2, ())
    assert counts.evictions == counts.loads - 2 >= 2 and counts.bytes == 200
    assert shelf.reads.count("d") >= 1


def test_the_least_recently_used_leaves() -> None:
    engine, _, _ = fake(slots=2)
    for i, name in enumerate("abac"):
        add(engine, str(i), ([1, 2], PARAMS, name))
        finish(engine)
    assert {adapter.name for adapter in engine.adapters._resident} == {"a", "c"}


def test_others_go_on_while_one_is_read() -> None:
    engine, shelf, _ = fake(slots=1, names="ab")
    add(engine, "first", ([1], PARAMS, "a"))
    finish(engine)
    shelf.gate.clear()
    add(engine, "slow", ([1, 2], PARAMS, "b"))
    add(engine, "plain", ([1, 2, 3], PARAMS, None))
    seen = set()
    while "plain" not in seen:
        seen |= {output.request_id for output in engine.step() if output.finished}
    assert engine.adapters.counts().waiting == ("b",)
    began = time.monotonic()
    assert engine.step() == [] and time.monotonic() - began < 5
    shelf.gate.set()
    assert finish(engine) == {"slow": "length"}


def test_nobody_with_an_adapter_overtakes_one_that_waits_for_a_slot() -> None:
    engine, _, _ = fake(slots=1, names="ab", max_num_seqs=4)
    add(engine, "a1", ([1], dataclasses.replace(PARAMS, max_tokens=40), "a"))
    engine.step()
    add(engine, "b", ([1], PARAMS, "b"))
    engine.step()  # b is being read
    engine.adapters.wait()
    add(engine, "a2", ([1], PARAMS, "a"))
    add(engine, "plain", ([1], PARAMS, None))
    order = []
    while engine.has_work:
        order += [output.request_id for output in engine.step() if output.finished]
    assert order.index("b") < order.index("a2") and order.index("plain") < order.index("b")


def test_a_name_that_is_taken_away_serves_those_that_have_it() -> None:
    engine, _, executor = fake(slots=2, names="a")
    add(engine, "running", ([1], PARAMS, "a"))
    engine.step()
    engine.adapters.retire(engine.adapters.unload("a"))
    assert engine.adapters.counts().resident == 1
    with pytest.raises(ModelNotFoundError):
        engine.adapters.named("a")
    with pytest.raises(ModelNotFoundError):
        engine.adapters.unload("a")
    assert finish(engine) == {"running": "length"}
    assert engine.adapters.counts().resident == 0 and executor.adapters[0] is None


def test_a_new_adapter_under_an_old_name_is_another(subject: tuple[Plan, Path], tmp_path: Path) -> None:
    engine = core(subject, cached=True)
    ids = list(range(40))
    job: Job = (ids, dataclasses.replace(PARAMS, logprobs=1), "a")
    before = essence(run(engine, [job], [0])[0])
    add(engine, "0", job)
    engine.step()  # it runs while its name passes to another
    engine.adapters.retire(engine.adapters.unload("a"))
    engine.adapters.load("a", subject[1] / "c")
    add(engine, "1", job)
    collectors = {"0": Collector(), "1": Collector()}
    while engine.has_work:
        for output in engine.step():
            collectors[output.request_id].add(output)
    renamed = essence(collectors["1"].result())
    assert renamed == alone(subject, [(ids, job[1], "c")])[0] != before


@pytest.mark.parametrize("how", ["gone", "changed"])
def test_an_adapter_that_can_not_be_read_again_ends_its_requests_only(how: str) -> None:
    engine, shelf, _ = fake(slots=1, names="ab")
    if how == "gone":
        shelf.broken.add("b")
    else:
        shelf.version = "2"
    add(engine, "bad", ([1], PARAMS, "b"))
    add(engine, "plain", ([1], PARAMS, None))
    assert finish(engine) == {"bad": "error", "plain": "length"}
    shelf.broken.clear()
    shelf.version = "1"
    add(engine, "again", ([1], PARAMS, "b"))
    assert finish(engine) == {"again": "length"}


def test_an_executor_that_refuses_an_adapter_ends_its_requests_only() -> None:
    engine, _, executor = fake(slots=1)

    def refuse(slot: int, adapter: object) -> None:
        raise ValueError("it does not fit")

    executor.set_adapter = refuse  # type: ignore[method-assign]
    add(engine, "bad", ([1], PARAMS, "a"))
    assert finish(engine) == {"bad": "error"}


def test_aborted_while_it_is_read() -> None:
    engine, shelf, _ = fake(slots=1)
    for name in "abcd":
        shelf.gate.clear()
        add(engine, name, ([1], PARAMS, name))
        engine.step()
        engine.abort(name)
        shelf.gate.set()
    add(engine, "last", ([1], PARAMS, "c"))
    assert finish(engine) == {"last": "length"}
    engine.close()


@settings(max_examples=60, deadline=None)
@given(
    jobs=st.lists(st.tuples(st.sampled_from([None, *"abcd"]), st.integers(0, 15), st.integers(1, 40)), max_size=14),
    slots=st.integers(1, 4), pages=st.sampled_from([4, 8, 64]), seqs=st.integers(1, 5),
)  # fmt: skip
def test_every_request_runs_with_its_own_adapter(
    jobs: list[tuple[str | None, int, int]], slots: int, pages: int, seqs: int
) -> None:
    executor = FakeExecutor(pages)
    adapters = Adapters(executor, lambda path: Content(path.name, 8, 1, path.name), slots)
    for name in "abcd":
        adapters.load(name, Path(name))
    engine = make_core(executor=executor, adapters=adapters, max_num_seqs=seqs)
    begun: list[tuple[object, object]] = []
    forward = executor.forward

    def checked(batch: Any) -> None:
        for row, slot in enumerate(batch.adapters.tolist()):
            first = batch.tokens[batch.counts[:row].sum()]
            if batch.starts[row] == 0:
                begun.append((first, None if slot < 0 else executor.adapters[slot]))
        forward(batch)

    executor.forward = checked  # type: ignore[method-assign]
    waiting = sorted(range(len(jobs)), key=lambda i: jobs[i][1])
    step, done = 0, 0
    while waiting or engine.has_work:
        while waiting and jobs[waiting[0]][1] <= step:
            index = waiting.pop(0)
            name, _, length = jobs[index]
            add(engine, str(index), ([index] + [9] * (length - 1), PARAMS, name))
        done += sum(output.finished for output in engine.step())
        step += 1
        assert step < 10_000
    assert done == len(jobs)
    assert all(adapter == jobs[int(index)][0] for index, adapter in begun)  # type: ignore[call-overload]
    assert not adapters._pins and len(adapters._free) + len(adapters._resident) == slots


def test_names_are_unique_and_sane() -> None:
    engine, _, _ = fake(names="a")
    for name in ("a", "", "x" * 300, "a\nb"):
        with pytest.raises(InvalidRequestError):
            engine.adapters.load(name, Path("a"))
    assert isinstance(engine.adapters.named("a"), Adapter)
    with pytest.raises(ConfigError, match="max_loras"):
        make_core().adapters.load("a", Path("a"))


def test_hot_swap_under_load(subject: tuple[Plan, Path]) -> None:
    """Names come and go from another thread while requests run; what was accepted is answered as alone."""
    ids = [random.Random(4).randrange(250) for _ in range(30)]
    params = SamplingParams(temperature=0.0, max_tokens=12, logprobs=1, ignore_eos=True)
    wanted = dict(zip(NAMES, alone(subject, [(ids, params, name) for name in NAMES]), strict=True))
    engine = core(subject, threads=2, slots=2, cached=True)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for name in NAMES:
                engine.adapters.unload(name)
                engine.adapters.load(name, subject[1] / name)

    swapper = threading.Thread(target=swap)
    swapper.start()
    collectors: dict[str, Collector] = {}
    try:
        for i in range(60):
            try:
                add(engine, f"{i}{NAMES[i % 3]}", (ids, params, NAMES[i % 3]))
                collectors[f"{i}{NAMES[i % 3]}"] = Collector()
            except ModelNotFoundError:
                pass  # between two loads of its name
            for output in engine.step():
                collectors[output.request_id].add(output)
    finally:
        stop.set()
        swapper.join()
    while engine.has_work:
        for output in engine.step():
            collectors[output.request_id].add(output)
    assert len(collectors) > 20
    for name, collector in collectors.items():
        outcome = essence(collector.result())
        assert [choice[1:3] for choice in outcome[1]] == [choice[1:3] for choice in wanted[name[-1]][1]]  # type: ignore[index]


@pytest.mark.model
def test_offline_by_name(smollm2_path: Path, tmp_path: Path) -> None:
    from tests.adapters import write_adapter

    sizes = {"q_proj": (576, 576), "v_proj": (192, 576), "down_proj": (576, 1536)}
    for i in range(3):
        write_adapter(tmp_path / str(i), sizes, range(30), seed=i, names=list(sizes), dtype="float16", strength=0.5)
    params = SamplingParams(temperature=0.0, max_tokens=8)
    options = {"kv_memory": 64 << 20, "max_loras": 2, "lora": {str(i): str(tmp_path / str(i)) for i in range(2)}}
    with LLM(str(smollm2_path), **options) as llm:
        llm.load_lora("2", tmp_path / "2")
        prompts = [{"prompt": "The sea is", "lora": name} for name in ("0", "1", "2")]
        texts = [output.outputs[0].text for output in llm.generate(["The sea is", *prompts], params)]
        assert len(set(texts)) == 4
        single = [llm.generate(prompt, params)[0].outputs[0].text for prompt in ("The sea is", *prompts)]
        assert single == texts
        llm.unload_lora("2")
        shutil.rmtree(tmp_path / "2")
        with pytest.raises(ModelNotFoundError):
            llm.generate(prompts[2], params)
