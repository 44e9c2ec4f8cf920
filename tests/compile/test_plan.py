"""Compiled plans against the reference, the plan cache, and plans that lie."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold import _native, config
from sixfold.compile import Plan, build
from sixfold.compile.plan import HEADER, OP
from sixfold.errors import PlanError, UnsupportedModelError
from sixfold.models import load_network
from sixfold.runtime.batch import Batch
from sixfold.runtime.native import NativeExecutor
from sixfold.runtime.reference import ReferenceModel
from sixfold.weights.model_file import ModelFile, open_model
from tests.tiny_kinds import KINDS
from tests.tiny_models import write_gguf, write_hf

ISAS = ["scalar", "auto"]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIXFOLD_HOME", str(tmp_path / "home"))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def one_sequence(tokens: list[int], pages: int = 20) -> Batch:
    return Batch(ints(*tokens), ints(0), ints(len(tokens)), np.arange(pages, dtype=np.int32), ints(0, pages))


def all_logits(plan: Plan, tokens: list[int], isa: str = "auto", threads: int = 2) -> np.ndarray:
    executor = NativeExecutor(plan, num_pages=20, max_tokens=256, threads=threads, isa=isa)
    executor.forward(one_sequence(tokens))
    return executor.logits(np.arange(len(tokens), dtype=np.int32)).copy()


def tokens_for(model: ModelFile, count: int) -> list[int]:
    vocabulary = load_network(model).hyper.vocabulary
    return [int(t) for t in np.random.default_rng(count).integers(0, vocabulary, count)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_float_plan_equals_the_unfused_graph(kind: str, isa: str, tmp_path: Path) -> None:
    with open_model(write_hf(kind, tmp_path / kind)) as model:
        tokens = tokens_for(model, 150)
        wanted = ReferenceModel(load_network(model)).logits(tokens)
        got = all_logits(build(model), tokens, isa)
    # the only approximation of a float plan is the float16 KV cache
    assert np.abs(got - wanted).max() <= 0.02 * wanted.std()
    assert np.sqrt(np.mean((got - wanted) ** 2)) <= 0.003 * wanted.std()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("quant", ["Q4_0", "Q8_0", "F16", "BF16", "mixed", "Q4_K_M", "Q2_K", "Q3_K", "Q5_K"])
def test_a_quantised_plan_is_near_the_reference(quant: str, isa: str, tmp_path: Path) -> None:
    with open_model(write_gguf("llama-wide", tmp_path / "m.gguf", quant)) as model:
        tokens = tokens_for(model, 70)
        wanted = ReferenceModel(load_network(model)).logits(tokens)
        got = all_logits(build(model), tokens, isa)
    # int8 activations: 0.4 to 0.8 % of noise in every product of these random networks
    assert np.sqrt(np.mean((got - wanted) ** 2)) <= 0.05 * wanted.std()


def test_threads_change_no_bit(tmp_path: Path) -> None:
    with open_model(write_gguf("gemma3-wide", tmp_path / "m.gguf", "Q4_K_M")) as model:
        tokens = tokens_for(model, 150)
        plan = build(model)
    one = all_logits(plan, tokens, threads=1)
    for threads in (2, 3, 8):
        assert (all_logits(plan, tokens, threads=threads) == one).all()


def test_norms_are_joined_and_every_layer_is_fused(tmp_path: Path) -> None:
    with open_model(write_hf("gemma3", tmp_path / "gemma3")) as model:
        layers = load_network(model).hyper.layers
        plan = build(model)
    kinds = [op["op"] for op in plan.operators]
    assert kinds.count("qkv_rope_kv") == kinds.count("gate_up_act") == layers
    assert kinds.count("norm") == 1  # the first; all others follow a residual add and are joined to it
    assert kinds.count("norm_add_norm") == 2 * layers - 1
    assert kinds[-2:] == ["gather_norm", "logits"]


def test_a_second_build_comes_from_the_cache_and_is_the_same(tmp_path: Path) -> None:
    with open_model(write_hf("llama", tmp_path / "llama")) as model:
        first = build(model)
        (file,) = (config.home() / "plans").iterdir()
        before = file.stat().st_mtime_ns
        second = build(model)
        uncached = build(model, cache=False)
    assert file.stat().st_mtime_ns == before
    assert (first.data == second.data).all()
    assert (first.data == uncached.data).all()
    assert [f.name for f in (config.home() / "plans").iterdir()] == [file.name]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign", "flip the last", "swap pieces"])
def test_a_damaged_cache_entry_is_compiled_again(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sixfold.compile.plan.PIECE", 4096)  # so that it has several
    with open_model(write_hf("llama", tmp_path / "llama")) as model:
        good = build(model).data.copy()
        (file,) = (config.home() / "plans").iterdir()
        content = bytearray(good.tobytes())
        if damage == "flip":
            content[5000] ^= 16
        elif damage == "flip the last":
            content[int(good[: HEADER.itemsize].view(HEADER)[0]["meta_offset"]) - 1] ^= 1
        elif damage == "swap pieces":
            content[8192:16384] = content[12288:16384] + content[8192:12288]
            assert content != good.tobytes()
        elif damage == "cut":
            del content[-100:]
        elif damage == "empty":
            content.clear()
        else:
            content = content.replace(b'"key": "', b'"key": "x')[: len(content)]
        file.unlink()  # the first plan still maps the old file
        file.write_bytes(content)
        assert (build(model).data == good).all()


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    directory = write_hf("llama", tmp_path / "llama")
    settings_file = directory / "config.json"
    described = json.loads(settings_file.read_text()) | {"model_type": "hyena", "architectures": ["HyenaForCausalLM"]}
    settings_file.write_text(json.dumps(described))
    with open_model(directory) as model, pytest.raises(UnsupportedModelError, match=r"'hyena'.*llama, qwen2"):
        build(model)


def test_what_does_not_fit_a_step_is_refused(tmp_path: Path) -> None:
    with open_model(write_hf("llama", tmp_path / "llama")) as model:
        executor = NativeExecutor(build(model), num_pages=4, max_tokens=32)
    good = one_sequence([1, 2, 3], pages=4)
    executor.forward(good)
    bad = [
        Batch(ints(1, 2, 9999), good.starts, good.counts, good.pages, good.page_offsets),
        Batch(ints(1, 2, -1), good.starts, good.counts, good.pages, good.page_offsets),
        Batch(good.tokens, good.starts, good.counts, ints(0, 1, 2, 4), good.page_offsets),
        Batch(good.tokens, ints(62), good.counts, good.pages, good.page_offsets),
        Batch(good.tokens, ints(-1), good.counts, good.pages, good.page_offsets),
        Batch(good.tokens, good.starts, ints(2), good.pages, good.page_offsets),
        Batch(good.tokens, good.starts, ints(4), good.pages, good.page_offsets),
        Batch(ints(), ints(), ints(), ints(), ints(0)),
        one_sequence(list(range(33)), pages=4),
        Batch(good.tokens, good.starts, good.counts, good.pages, ints(0, 9)),
    ]
    for batch in bad:
        with pytest.raises(ValueError):
            executor.forward(batch)
    executor.forward(good)
    with pytest.raises(ValueError, match="row"):
        executor.logits(ints(3))
    with pytest.raises(ValueError, match="pool"):
        executor.copy_pages(ints(0), ints(4))


@pytest.fixture(scope="module")
def small_plan(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("plan")
    with open_model(write_hf("llama", folder / "llama")) as model:
        return build(model, cache=False).data.copy()


def load_native(plan: np.ndarray) -> None:
    room = np.zeros(len(plan) + 64, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + len(plan)] = plan
    executor = _native.Executor(room[start : start + len(plan)], "auto", 1, 16, 2, ["f16"], np.empty(0, np.float32), 1)
    executor.forward(ints(1, 2), ints(0), ints(2), ints(0), ints(0, 1))
    executor.logits(ints(0, 1), np.empty((2, executor.logits_width), np.float32))


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_plan_that_lies_is_refused_or_harmless(small_plan: np.ndarray, data: st.DataObject) -> None:
    plan = small_plan.copy()
    header = plan[: HEADER.itemsize].view(HEADER)[0]
    regions = {
        "header": (0, HEADER.itemsize),
        "matrices": (int(header["matrices_offset"]), int(header["ops_offset"])),
        "ops": (int(header["ops_offset"]), int(header["ops_offset"]) + int(header["op_count"]) * OP.itemsize),
    }
    for _ in range(data.draw(st.integers(1, 3))):
        begin, end = regions[data.draw(st.sampled_from(sorted(regions)))]
        at = data.draw(st.integers(begin // 4, end // 4 - 1)) * 4
        value = data.draw(st.sampled_from([0, 1, 2, 3, 7, 63, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
        plan[at : at + 4].view("<u4")[:] = value
    with contextlib.suppress(ValueError, MemoryError):
        load_native(plan)


def test_an_unknown_instruction_set_is_a_clear_error(small_plan: np.ndarray) -> None:
    with pytest.raises(PlanError, match="isa=auto"):
        NativeExecutor(
            Plan(small_plan, {"sizes": {"layers": 2, "head_size": 32}}), num_pages=1, max_tokens=1, isa="sse9"
        )
