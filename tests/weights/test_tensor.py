"""Values of every tensor type against the ``gguf`` package's own decoder, and the exactness of the integer form."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from sixfold.errors import ModelFileError, UnsupportedModelError
from sixfold.weights.quants import FLOATS, FORMATS
from sixfold.weights.tensor import CHUNK, Tensor, check_finite, split_blocks
from tests.gguf_files import HALVES, random_rows

KINDS = [*FLOATS, *FORMATS]
ENCODABLE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def tensor(kind: str, rows: int = 5, cols: int = 768, seed: int = 0) -> Tensor:
    return Tensor("blk.0.x", kind, (rows, cols), random_rows(kind, rows, cols, seed))


def oracle(data: np.ndarray, kind: str) -> np.ndarray:
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])


def assert_same_bits(mine: np.ndarray, theirs: np.ndarray) -> None:
    assert mine.dtype == np.float32
    np.testing.assert_array_equal(mine.view(np.uint32), np.ascontiguousarray(theirs, np.float32).view(np.uint32))


def test_the_types_are_those_promised() -> None:
    names = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL"
    assert sorted(KINDS) == sorted(names.split())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_dequantize_is_the_oracle_bit_for_bit(kind: str, seed: int) -> None:
    it = tensor(kind, seed=seed)
    assert it.dequantize().shape == (5, 768)
    assert_same_bits(it.dequantize(), oracle(it.data, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_dequantize_across_chunks(kind: str) -> None:
    rows = CHUNK // 256 * 2 + 3
    it = tensor(kind, rows=rows, cols=256)
    assert_same_bits(it.dequantize(), oracle(it.data, kind))


@pytest.mark.parametrize("kind", ENCODABLE)
def test_dequantize_of_encoded_weights(kind: str) -> None:
    weights = np.random.default_rng(3).normal(size=(4, 256)).astype(np.float32)
    data = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind]).view(np.uint8)
    values = Tensor("x", kind, weights.shape, data).dequantize()
    assert_same_bits(values, oracle(data, kind))
    assert np.abs(values - weights).max() < 0.35


@pytest.mark.parametrize("kind", FORMATS)
def test_blocks_rebuild_the_values_exactly(kind: str) -> None:
    it = tensor(kind, rows=CHUNK // 256 + 3)
    blocks = split_blocks(it)
    rows, cols = it.shape
    assert blocks.q.shape == it.shape
    assert blocks.scale.shape == (rows, cols // blocks.block)
    assert blocks.scale.dtype == np.float32
    assert blocks.q.dtype == (np.uint8 if blocks.bits == 4 else np.int8)
    values = blocks.scale[..., None] * blocks.q.reshape(rows, -1, blocks.block).astype(np.float32)
    if blocks.minimum is not None:
        assert blocks.minimum.dtype == np.float32
        values = values - blocks.minimum[..., None]
    np.testing.assert_array_equal(values.reshape(it.shape), it.dequantize())


def test_the_form_of_blocks_of_each_type() -> None:
    found = {}
    for kind in FORMATS:
        blocks = split_blocks(tensor(kind))
        found[kind] = (blocks.block, blocks.bits, blocks.minimum is not None, int(blocks.q.min()), int(blocks.q.max()))
    assert found == {
        "Q4_0": (32, 4, True, 0, 15),
        "Q4_1": (32, 4, True, 0, 15),
        "Q4_K": (32, 4, True, 0, 15),
        "Q5_0": (32, 8, False, -16, 15),
        "Q5_1": (32, 8, True, 0, 31),
        "Q5_K": (32, 8, True, 0, 31),
        "Q8_0": (32, 8, False, -128, 127),
        "Q2_K": (16, 8, True, 0, 3),
        "Q3_K": (16, 8, False, -4, 3),
        "Q6_K": (16, 8, False, -32, 31),
        "IQ4_NL": (32, 8, False, -127, 113),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_keep_their_shape(kind: str) -> None:
    it = Tensor("norm", kind, (512,), random_rows(kind, 1, 512))
    assert it.dequantize().shape == (512,)
    if kind in FORMATS:
        assert split_blocks(it).q.shape == (1, 512)


@pytest.mark.parametrize("kind", FLOATS)
def test_float_tensors_have_no_blocks(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'blk.0.x' has no blocks.*dequantize"):
        split_blocks(tensor(kind))


@pytest.mark.parametrize("kind", FLOATS)
def test_dequantize_gives_an_array_of_its_own(kind: str) -> None:
    it = tensor(kind)
    before = it.data.copy()
    it.dequantize()[:] = 0
    np.testing.assert_array_equal(it.data, before)


@pytest.mark.parametrize("kind", KINDS)
def test_finite_tensors_pass(kind: str) -> None:
    check_finite(tensor(kind))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_scale_that_is_not_finite_is_refused(kind: str, bad: float) -> None:
    for at in HALVES[kind]:
        it = tensor(kind)
        size = FORMATS[kind].bytes
        it.data.reshape(-1, size)[-1, at : at + 2] = np.array([bad], "<f2").view(np.uint8)
        with pytest.raises(ModelFileError, match=rf"'blk.0.x' \({kind}\) holds a scale .* not a number.*Download"):
            check_finite(it)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("kind", FLOATS)
def test_a_value_that_is_not_finite_is_refused(kind: str, bad: float) -> None:
    it = tensor(kind, rows=CHUNK // 768 + 2)  # the last value stands in the second chunk
    raw = np.array([bad], np.float32)
    item = {"F32": raw.view(np.uint8), "F16": raw.astype("<f2").view(np.uint8), "BF16": raw.view(np.uint8)[2:]}[kind]
    it.data[-1, -len(item) :] = item
    with pytest.raises(ModelFileError, match=r"'blk.0.x' .* holds a value"):
        check_finite(it)


@pytest.mark.parametrize("kind", FLOATS)
def test_the_largest_finite_values_pass(kind: str) -> None:
    biggest = {"F32": b"\xff\xff\x7f\x7f", "F16": b"\xff\x7b", "BF16": b"\x7f\x7f"}[kind]
    check_finite(Tensor("x", kind, (1,), np.frombuffer(biggest, np.uint8)[None]))
