"""Int4 layers: what is kept in float16 beside them, and what centres are good for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sixfold.compile import Plan, build
from sixfold.errors import ConfigError
from sixfold.models.network import load_network
from sixfold.runtime.batch import ANYWHERE, Batch
from sixfold.runtime.native import NativeExecutor
from sixfold.runtime.reference import ReferenceModel
from sixfold.weights.model_file import open_model
from tests.tiny_kinds import KINDS
from tests.tiny_models import write_gguf

PAGES = 12


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    with open_model(write_gguf("llama-wide", tmp_path_factory.mktemp("m") / "m.gguf", "F32")) as model:
        return build(model, cache=False)


def executor(plan: Plan, kv_format: str = "int4", **options: object) -> NativeExecutor:
    return NativeExecutor(plan, num_pages=PAGES, max_tokens=192, threads=1, kv_format=kv_format, **options)  # type: ignore[arg-type]


def run(executor: NativeExecutor, tokens: np.ndarray, start: int, table: np.ndarray | None = None) -> np.ndarray:
    """The last row's logits."""
    table = np.arange(PAGES, dtype=np.int32) if table is None else table
    executor.forward(Batch(tokens, i32(start), i32(len(tokens)), table, i32(0, len(table))))
    return executor.logits(i32(len(tokens) - 1))[0].copy()


TOKENS = np.random.default_rng(1).integers(1, 250, 150).astype(np.int32)


def test_a_first_block_is_as_exact_as_float16(plan: Plan) -> None:
    """All its keys are read from float16 pages; only the rotation rounds differently."""
    exact, int4 = (run(executor(plan, kv_format), TOKENS[:64], 0) for kv_format in ("f16", "int4"))
    np.testing.assert_allclose(int4, exact, atol=2e-2 * np.abs(exact).max())
    beyond = [run(executor(plan, kv_format), TOKENS[:128], 0) for kv_format in ("f16", "int4")]
    assert np.abs(beyond[0] - beyond[1]).max() > 2 * np.abs(int4 - exact).max(), "nothing came from int4 pages"


@pytest.mark.parametrize("cuts", [(1, 15, 16, 63, 64, 65, 128, 149), (40, 100)])
def test_steps_may_be_cut_anywhere(plan: Plan, cuts: tuple[int, ...]) -> None:
    whole = run(executor(plan), TOKENS, 0)
    pieces = executor(plan)
    for begin, end in zip((0, *cuts), (*cuts, len(TOKENS)), strict=True):
        last = run(pieces, TOKENS[begin:end], begin)
    np.testing.assert_array_equal(last, whole)


def test_a_sequence_begins_at_a_block_with_others_pages_and_runs_its_first_tokens_again(plan: Plan) -> None:
    engine = executor(plan)
    whole = run(engine, TOKENS, 0)
    assert engine.resumption != ANYWHERE
    shared = np.concatenate([np.arange(8), [10, 11]]).astype(np.int32)  # 128 tokens of the first sequence
    for page in (8, 9):  # nothing of its newest tokens is used
        engine.write_page(page, bytes(engine.page_bytes))
    first, rest = TOKENS[:16], TOKENS[128:]
    tables = np.concatenate([shared, shared])
    engine.forward(Batch(np.concatenate([first, rest]), i32(0, 128), i32(16, len(rest)), tables, i32(0, 10, 20)))
    np.testing.assert_array_equal(engine.logits(i32(len(first) + len(rest) - 1))[0], whole)


def both(engine: NativeExecutor, table: np.ndarray) -> np.ndarray:
    """Logits of the last token when the first 16 are run again, and the tokens from the last block on."""
    tokens, begin = np.concatenate([TOKENS[:16], TOKENS[128:]]), len(TOKENS) - 128
    tables = np.concatenate([table, table])
    engine.forward(Batch(tokens, i32(0, 128), i32(16, begin), tables, i32(0, len(table), 2 * len(table))))
    return engine.logits(i32(len(tokens) - 1))[0].copy()


ALL = np.arange(PAGES, dtype=np.int32)


def test_what_is_not_there_in_float16_is_refused(plan: Plan) -> None:
    engine = executor(plan)
    run(engine, TOKENS[:100], 0)
    with pytest.raises(ValueError, match="no longer there in float16"):
        run(executor(plan), TOKENS[100:], 100)
    with pytest.raises(ValueError, match="no longer there in float16"):
        run(engine, TOKENS[100:], 100, ALL[::-1].copy())
    with pytest.raises(ValueError, match="no longer there in float16"):
        run(engine, TOKENS[100:], 100)  # it was in no step meanwhile: whose pages these are now is not known
    whole = run(executor(plan), TOKENS, 0)
    engine = executor(plan)
    run(engine, TOKENS[:128], 0)
    run(engine, TOKENS[:3], 0, ALL[9:].copy())
    np.testing.assert_array_equal(both(engine, ALL), whole)


def test_a_page_that_is_replaced_takes_its_float16_with_it(plan: Plan) -> None:
    engine, whole = executor(plan), run(executor(plan), TOKENS, 0)
    run(engine, TOKENS[:16], 0, ALL[11:].copy())  # another sequence's first page, which is long gone
    run(engine, TOKENS[:70], 0)
    run(engine, TOKENS[70:128], 70)
    engine.write_page(11, engine.read_page(0))
    engine.replace_page(0, 11)
    np.testing.assert_array_equal(run(engine, TOKENS[128:], 128, np.array([11, *range(1, 10)], np.int32)), whole)


def test_a_long_step_takes_no_float16_page_that_another_sequence_needs(plan: Plan) -> None:
    """Seats for three: two decode while a third runs its prompt in large pieces, first in every batch."""
    engine = NativeExecutor(plan, num_pages=40, max_tokens=160, threads=1, kv_format="int4", max_sequences=3)
    tables = [np.arange(first, first + count, dtype=np.int32) for first, count in ((16, 24), (0, 8), (8, 8))]
    pages, offsets = np.concatenate(tables), i32(0, 24, 32, 40)
    starts, counts = [0, 0, 0], [2, 79, 79]
    for _ in range(4):
        pieces = [np.resize(TOKENS, start + count)[start:] for start, count in zip(starts, counts, strict=True)]
        engine.forward(Batch(np.concatenate(pieces), i32(*starts), i32(*counts), pages, offsets))
        starts = [start + count for start, count in zip(starts, counts, strict=True)]
        counts = [120, 1, 1]
    first, second = engine.logits(i32(120, 121)).copy()
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, run(executor(plan), TOKENS[:82], 0))


def test_more_sequences_than_were_promised_are_refused(plan: Plan) -> None:
    small = NativeExecutor(plan, num_pages=40, max_tokens=32, threads=1, kv_format="int4", max_sequences=1)
    tokens = TOKENS[:32]
    with pytest.raises(ValueError, match="more sequences"):
        zeros, pages = np.zeros(32, np.int32), np.arange(33, dtype=np.int32)
        small.forward(Batch(tokens, zeros, zeros + np.int32(1), pages[:32], pages))


def test_heads_that_int4_can_not_hold_are_refused(tmp_path: Path) -> None:
    with open_model(write_gguf("qwen2", tmp_path / "m.gguf", "F32")) as model:
        small = build(model, cache=False)
    with pytest.raises(ConfigError, match="can not be kept in int4"):
        NativeExecutor(small, num_pages=2, max_tokens=16, kv_format="int4")


def test_key_means_are_those_of_the_reference(plan: Plan, tmp_path: Path) -> None:
    """Keys before rope, of a network whose keys the reference has written down."""
    with open_model(write_gguf("llama-wide", tmp_path / "m.gguf", "F32")) as model:
        network = load_network(model)
        keys: list[np.ndarray] = []

        class Watching(ReferenceModel):
            def _run(self, node, inputs, ids):  # type: ignore[no-untyped-def]
                value = super()._run(node, inputs, ids)
                if node.op == "rope" and value.shape[1] == network.hyper.kv_heads * network.hyper.head_size:
                    keys.append(inputs[0].reshape(len(ids), network.hyper.kv_heads, -1))
                return value

        Watching(network).logits(TOKENS[:40].tolist())
    engine = executor(plan, "f16")
    run(engine, TOKENS[:40], 0)
    means = engine.key_means(np.arange(3, dtype=np.int32), 40)
    wanted = np.stack([key[1:].mean(0) for key in keys])
    np.testing.assert_allclose(means, wanted, atol=3e-3 * np.abs(wanted).max())


BIASED = dataclasses.replace(
    KINDS["qwen2"], head_dim=64, hidden=256, heads=4, kv_heads=2, intermediate=512, context=2048
)


@pytest.fixture
def biased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A Qwen2-shaped model: its keys have a bias with a few large elements in every head (tests/tiny_models.py)."""
    monkeypatch.setitem(KINDS, "biased", BIASED)
    with open_model(write_gguf("biased", tmp_path / "m.gguf", "F32")) as model:
        return build(model, cache=False)


def test_a_key_bias_with_outliers_costs_4_bits_little(biased: Plan) -> None:
    """Perplexity of text that the model itself has written; centres take the bias out of what is quantised."""
    length, step = 1024, 64
    table = np.arange(length // 16, dtype=np.int32)

    def engine(kv_format: str, centres: np.ndarray | None = None) -> NativeExecutor:
        return NativeExecutor(
            biased, num_pages=len(table), max_tokens=step, threads=1, kv_format=kv_format, key_centres=centres
        )

    rng, writer, text = np.random.default_rng(0), engine("f16"), [1]
    while len(text) < length:
        logits = run(writer, i32(text[-1]), len(text) - 1, table).astype(np.float64)
        chances = np.exp(logits - logits.max())
        text.append(int(rng.choice(len(chances), p=chances / chances.sum())))
    centres = writer.key_means(table, 256)

    def loss(scorer: NativeExecutor) -> float:
        total = 0.0
        for start in range(0, length - step, step):
            tokens = np.array(text[start : start + step], np.int32)
            scorer.forward(Batch(tokens, i32(start), i32(step), table, i32(0, len(table))))
            logits = scorer.logits(np.arange(step, dtype=np.int32)).astype(np.float64)
            targets = text[start + 1 : start + step + 1]
            total += (np.log(np.exp(logits).sum(-1)) - logits[np.arange(step), targets]).sum()
        return total / (length - step)

    exact = loss(engine("f16"))
    change = {
        "int8": loss(engine("int8")) - exact,
        "int4": loss(engine("int4", centres)) - exact,
        "int4 without centres": loss(engine("int4")) - exact,
    }
    # At 4,096 tokens int8 costs 0.0001 and int4 0.0067; the shorter the text, the more a single choice weighs.
    assert abs(change["int8"]) < 0.001 and abs(change["int4"]) < 0.015, change
    assert abs(change["int4"]) < abs(change["int4 without centres"]) * 0.6, change
