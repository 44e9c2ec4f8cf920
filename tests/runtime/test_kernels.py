"""Every kernel on every instruction set this machine has, against the numpy reference."""

from __future__ import annotations

import numpy as np
import pytest

from sixfold import _native
from sixfold.compile.formats import FORMATS
from sixfold.compile.pack import pack_tiles
from sixfold.compile.plan import matrix_record
from sixfold.runtime import reference
from sixfold.weights.tensor import Tensor
from tests.gguf_files import random_rows


def available() -> list[str]:
    found = []
    for isa in ("scalar", "avx2", "avx512", "avx512bf16"):
        try:
            _native.kernel_rms_norm(isa, np.ones(1, np.float32), np.ones(1, np.float32), 1.0, np.ones(1, np.float32))
        except ValueError:
            continue
        found.append(isa)
    return found


ISAS = available()


def matrix(kind: str, rows: int, columns: int) -> Tensor:
    if kind == "F32":
        data = np.random.default_rng(5).standard_normal((rows, columns), dtype=np.float32).view(np.uint8)
    else:
        data = random_rows(kind, rows, columns, 5)
    return Tensor("w", kind, (rows, columns), data)


def aligned(values: np.ndarray) -> np.ndarray:
    """The same bytes at an address that kernels may load from, a multiple of 64."""
    room = np.zeros(values.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + values.nbytes] = values.view(np.uint8).reshape(-1)
    return room[start : start + values.nbytes]


def padded(x: np.ndarray) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, -x.shape[1] % 32)))


def native_matmul(isa: str, w: Tensor, x: np.ndarray) -> np.ndarray:
    rows, columns = w.shape
    out = np.full((len(x), rows + -rows % 16), np.nan, np.float32)
    record = matrix_record(rows, columns, FORMATS[w.type])
    _native.kernel_matmul(isa, record, aligned(pack_tiles(w)), padded(x), out)
    return out


def expected_matmul(w: Tensor, x: np.ndarray) -> np.ndarray:
    """float64 over the very numbers that the kernel sees: int8 activations for quantised weights."""
    x = padded(x)
    if FORMATS[w.type].quantised:
        q, scale = reference.quantise_activations(x)
        x = (q * scale[..., None]).reshape(x.shape)
    return x[:, : w.shape[1]].astype(np.float64) @ w.dequantize().astype(np.float64).T


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", sorted(FORMATS))
@pytest.mark.parametrize("rows", [1, 3, 4, 7, 33])
def test_matmul_matches_the_reference(isa: str, kind: str, rows: int) -> None:
    w = matrix(kind, 40, 512)
    x = np.random.default_rng(rows).standard_normal((rows, 512), dtype=np.float32)
    got, wanted = native_matmul(isa, w, x), expected_matmul(w, x)
    scale = np.abs(w.dequantize()).astype(np.float64).max() * np.sqrt(512)
    np.testing.assert_allclose(got[:, :40], wanted, rtol=0, atol=4e-6 * scale)
    assert (got[:, 40:] == 0).all(), "padded outputs must be zero"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_a_row_does_not_depend_on_the_rows_beside_it(isa: str, kind: str) -> None:
    w = matrix(kind, 32, 256)
    x = np.random.default_rng(1).standard_normal((9, 256), dtype=np.float32)
    together = native_matmul(isa, w, x)
    for row in range(9):
        assert (native_matmul(isa, w, x[row : row + 1])[0] == together[row]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("columns", [32, 96, 50])
def test_float_columns_need_not_fill_blocks(isa: str, columns: int) -> None:
    w = matrix("F32", 16, columns)
    x = np.random.default_rng(2).standard_normal((5, columns), dtype=np.float32)
    np.testing.assert_allclose(native_matmul(isa, w, x), expected_matmul(w, x), atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
def test_the_largest_activations_and_weights_do_not_overflow(isa: str) -> None:
    for kind in ("Q4_1", "Q8_0", "Q6_K", "Q4_0"):
        raw = matrix(kind, 16, 256)
        data = raw.data.copy()
        scales = FORMATS[kind].block
        assert scales
        if kind in ("Q4_1", "Q4_0"):
            data.reshape(16, 8, -1)[..., 4 if kind == "Q4_1" else 2 :] = 0xFF  # every nibble 15
        elif kind == "Q8_0":
            data.reshape(16, 8, -1)[..., 2:] = 0x80  # every weight -128
        w = Tensor("w", kind, (16, 256), data)
        for sign in (1.0, -1.0):
            x = np.full((4, 256), sign, np.float32)
            got, wanted = native_matmul(isa, w, x), expected_matmul(w, x)
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_an_embedding_row_is_exactly_what_the_file_says(kind: str) -> None:
    w = matrix(kind, 20, 256)
    tiles = aligned(pack_tiles(w))
    out = np.empty(256, np.float32)
    for row in (0, 7, 15, 16, 19):
        _native.kernel_unpack_row(matrix_record(20, 256, FORMATS[kind]), tiles, row, out)
        np.testing.assert_array_equal(out, w.dequantize()[row])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind, values", [("F32", 0), ("F16", 1), ("BF16", 2)])
@pytest.mark.parametrize("rank", [2, 8, 18])
def test_low_rank_products_are_added_row_by_row(isa: str, kind: str, values: int, rank: int) -> None:
    w = matrix(kind, rank, 16)
    rng = np.random.default_rng(rank)
    t, out = (rng.standard_normal((7, width), dtype=np.float32) for width in (rank, 20))
    wanted = out + np.pad(t.astype(np.float64) @ w.dequantize(), ((0, 0), (0, 4)))
    before = out.copy()
    _native.kernel_add_tile(isa, values, w.data.reshape(-1), t, out)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)
    for row in range(7):
        one = before[row : row + 1].copy()
        _native.kernel_add_tile(isa, values, w.data.reshape(-1), t[row : row + 1].copy(), one)
        np.testing.assert_array_equal(one[0], out[row])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [1, 7, 8, 64, 576, 577])
def test_rms_norm(isa: str, size: int) -> None:
    rng = np.random.default_rng(size)
    x, w = (rng.standard_normal(size, dtype=np.float32) for _ in range(2))
    out = np.empty(size, np.float32)
    _native.kernel_rms_norm(isa, x, w, 1e-5, out)
    np.testing.assert_allclose(out, reference.rms_norm(x, w, 1e-5), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("index, name", list(enumerate(["silu", "gelu_tanh"])))
def test_gated_activation(isa: str, index: int, name: str) -> None:
    gate = np.concatenate([np.linspace(-100, 100, 997), [0, -0.0, 1e-30, -1e30, 1e30, 88.8, -88.8]]).astype(np.float32)
    up = np.random.default_rng(0).standard_normal(len(gate), dtype=np.float32)
    out = np.empty(len(gate), np.float32)
    _native.kernel_gate(isa, index, gate, up, out)
    with np.errstate(over="ignore"):
        wanted = reference.ACTIVATIONS[name](gate.astype(np.float64)) * up
    finite = np.abs(gate) < 1e6
    np.testing.assert_allclose(out[finite], wanted[finite], rtol=3e-6, atol=1e-6)
    assert np.isfinite(out[gate == np.float32(-1e30)]).all() or name == "gelu_tanh"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("half", [4, 8, 11, 32])
def test_rope(isa: str, half: int) -> None:
    rng = np.random.default_rng(half)
    x = rng.standard_normal(2 * half + 6, dtype=np.float32)
    frequencies = rng.random(half, dtype=np.float32)
    angles = np.float32(11) * frequencies
    got = x.copy()
    _native.kernel_rope(isa, got, np.cos(angles), np.sin(angles))
    np.testing.assert_allclose(got, reference.rope(x[None, None], np.array([11]), frequencies)[0, 0], atol=2e-6)


def bfloat16(x: np.ndarray) -> np.ndarray:
    """x rounded to bfloat16, to nearest even."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("head_size", [16, 64, 256])
@pytest.mark.parametrize("tokens, group, position", [(1, 3, 0), (1, 3, 40), (5, 3, 0), (8, 1, 100), (3, 7, 31)])
@pytest.mark.parametrize("window", [0, 1, 20])
def test_attention(isa: str, head_size: int, tokens: int, group: int, position: int, window: int) -> None:
    rng = np.random.default_rng(tokens + position)
    q = rng.standard_normal((tokens, group, head_size), dtype=np.float32) / np.float32(head_size**0.5)
    k, v = (rng.standard_normal((position + tokens, head_size), dtype=np.float32) for _ in range(2))
    k, v = (x.astype(np.float16).astype(np.float32) for x in (k, v))
    out = np.empty((tokens * group, head_size), np.float32)
    _native.kernel_attention(isa, "f16", q.reshape(-1, head_size), k, v, tokens, position, window, out)
    tolerance = 2e-6
    if isa == "avx512bf16":  # its operands are rounded; probabilities, 8 bits of them, can not be seen from here
        q, k, v = (bfloat16(x) for x in (q, k, v))
        tolerance = 2.0**-9 * float(np.abs(v).max())
    wanted = reference.attention(q, k[:, None], v[:, None], position, window)
    np.testing.assert_allclose(out.reshape(q.shape), wanted, rtol=1e-5, atol=tolerance)


def int8_pages(x: np.ndarray) -> np.ndarray:
    """x [tokens, head_size] as int8 pages hold it."""
    scale = (np.abs(x).max(-1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return (np.clip(np.round(x * inverse), -127, 127) * scale).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("head_size", [16, 80, 256])
@pytest.mark.parametrize(
    "tokens, group, position", [(1, 3, 0), (1, 3, 700), (5, 3, 0), (16, 3, 129), (8, 1, 100), (3, 7, 31)]
)
@pytest.mark.parametrize("window", [0, 1, 20])
def test_attention_over_int8_pages(
    isa: str, head_size: int, tokens: int, group: int, position: int, window: int
) -> None:
    rng = np.random.default_rng(tokens + position)
    q = rng.standard_normal((tokens, group, head_size), dtype=np.float32) / np.float32(head_size**0.5)
    k, v = (rng.standard_normal((position + tokens, head_size), dtype=np.float32) for _ in range(2))
    k[::3] *= 1e-3
    v[-1] = 0
    out = np.empty((tokens * group, head_size), np.float32)
    _native.kernel_attention(isa, "int8", q.reshape(-1, head_size), k, v, tokens, position, window, out)
    k, v = int8_pages(k), int8_pages(v)
    wanted = reference.attention(q, k[:, None], v[:, None], position, window)
    # queries and probabilities are rounded to 1/32767 of the largest of a row
    tolerance = 2e-6 if isa == "scalar" else 1e-4
    np.testing.assert_allclose(out.reshape(q.shape), wanted, rtol=1e-5, atol=tolerance)


def exact_in_int4(rng: np.random.Generator, tokens: int, head_size: int) -> np.ndarray:
    """[tokens, head_size] that int4 pages hold as it is: a scale a token, times the halves from -7.5 to 7.5."""
    halves = rng.integers(0, 16, (tokens, head_size)).astype(np.float32) - np.float32(7.5)
    halves[:, 0] = 7.5  # the largest one is there
    return (halves * rng.uniform(0.05, 0.25, (tokens, 1)).astype(np.float16)).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("head_size", [32, 64, 96, 256])
@pytest.mark.parametrize(
    "tokens, group, position", [(1, 3, 0), (1, 3, 700), (5, 3, 0), (16, 3, 129), (8, 1, 100), (3, 7, 31)]
)
@pytest.mark.parametrize("window", [0, 1, 20])
def test_attention_over_int4_pages(
    isa: str, head_size: int, tokens: int, group: int, position: int, window: int
) -> None:
    rng = np.random.default_rng(tokens + position)
    q = rng.standard_normal((tokens, group, head_size), dtype=np.float32) / np.float32(head_size**0.5)
    k, v = (exact_in_int4(rng, position + tokens, head_size) for _ in range(2))
    out = np.empty((tokens * group, head_size), np.float32)
    _native.kernel_attention(isa, "int4", q.reshape(-1, head_size), k, v, tokens, position, window, out)
    wanted = reference.attention(q, k[:, None], v[:, None], position, window)
    tolerance = 2e-5 if isa == "scalar" else 5e-4  # queries and probabilities are rounded to 1/32767 of the largest
    np.testing.assert_allclose(out.reshape(q.shape), wanted, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("head_size", [32, 64, 256])
def test_int4_takes_the_range_of_the_least_error(isa: str, head_size: int) -> None:
    values = np.random.default_rng(1).standard_normal((50, head_size), dtype=np.float32)
    values[::5, 3] *= 20  # an outlier
    for x in values:
        out = np.empty((1, head_size), np.float32)
        _native.kernel_attention(isa, "int4", np.zeros((1, head_size), np.float32), x[None], x[None], 1, 0, 0, out)
        errors = []
        for part in (1.0, 0.93, 0.86, 0.8, 0.74, 0.68, 0.62):
            code = np.clip(np.floor(x * 7.5 / (np.abs(x).max() * part) + 8), 0, 15) - 7.5
            errors.append(((x - (x @ code) / (code @ code) * code) ** 2).sum())
        assert ((out[0] - x) ** 2).sum() <= min(errors) * 1.001 + 1e-6


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("head_size", [16, 32, 80, 256])
def test_the_hadamard_rotation_keeps_products_and_is_its_own_inverse(isa: str, head_size: int) -> None:
    x, y = np.random.default_rng(0).standard_normal((2, head_size), dtype=np.float32)
    a, b = x.copy(), y.copy()
    _native.kernel_rotate_head(isa, a)
    _native.kernel_rotate_head(isa, b)
    assert a @ b == pytest.approx(x @ y, rel=1e-5, abs=1e-5)
    block = head_size & -head_size
    assert a[:block].sum() == pytest.approx(x[0] * block**0.5, rel=1e-4)  # the first column is all ones
    _native.kernel_rotate_head(isa, a)
    np.testing.assert_allclose(a, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_format", ["int8", "int4"])
def test_pages_of_integers_take_any_value(isa: str, kv_format: str) -> None:
    q = np.ones((1, 32), np.float32)
    k, v = np.zeros((3, 32), np.float32), np.ones((3, 32), np.float32)
    k[0], v[0, :2] = np.nan, (np.inf, -np.inf)
    v[1, 0] = 1e30
    out = np.empty((1, 32), np.float32)
    _native.kernel_attention(isa, kv_format, q, k, v, 1, 2, 1, out)  # the window shows the last key only
    np.testing.assert_allclose(out, 1.0, atol=1e-3)


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown instruction set"):
        _native.kernel_rope("sse9", np.ones(2, np.float32), np.ones(1, np.float32), np.ones(1, np.float32))
