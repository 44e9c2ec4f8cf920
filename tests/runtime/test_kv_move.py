"""Moving tokens' KV to other pages and positions, for every KV format and instruction set, against numpy."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from sixfold.compile import Plan, build
from sixfold.models.network import load_network
from sixfold.runtime.batch import PAGE_SIZE, Batch
from sixfold.runtime.kv_format import head_bytes
from sixfold.runtime.native import NativeExecutor
from sixfold.weights.model_file import open_model
from tests.runtime.test_kernels import ISAS
from tests.tiny_models import write_gguf

TABLES = {"llama-wide": (0, 0), "gemma3-wide": (0, 0, 0, 0, 0, 1)}  # rope table of each layer: gemma has two
TOKENS = 45
FORMATS = ("f16", "int8")  # those whose tokens can be moved


class Tiny(NamedTuple):
    plan: Plan
    rope: tuple[np.ndarray, ...]
    tables: tuple[int, ...]

    @property
    def heads(self) -> int:
        return int(self.plan.meta["sizes"]["kv_heads"])

    @property
    def size(self) -> int:
        return int(self.plan.meta["sizes"]["head_size"])


@pytest.fixture(scope="module", params=TABLES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    path: Path = write_gguf(request.param, tmp_path_factory.mktemp("m") / "m.gguf", "Q4_0")
    with open_model(path) as model:
        return Tiny(build(model, cache=False), load_network(model).hyper.rope, TABLES[request.param])


def ran(tiny: Tiny, format: str, isa: str = "auto", threads: int = 1) -> NativeExecutor:
    """With the KV of 45 tokens in pages 0 to 2; pages 3 to 9 are empty."""
    executor = NativeExecutor(tiny.plan, num_pages=10, max_tokens=64, threads=threads, isa=isa, kv_format=format)
    tokens = np.arange(7, 7 + TOKENS, dtype=np.int32)
    executor.forward(
        Batch(tokens, np.array([0], np.int32), np.array([TOKENS], np.int32), np.arange(3, dtype=np.int32),
              np.array([0, 3], np.int32))
    )  # fmt: skip
    return executor


def hadamard(keys: np.ndarray) -> np.ndarray:
    """Keys [..., d] times the matrix that rotate_head multiplies by, its own inverse."""
    size = keys.shape[-1]
    matrix = np.ones((1, 1))
    while len(matrix) < (size & -size):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    blocks = keys.reshape(*keys.shape[:-1], -1, len(matrix))
    return (blocks @ matrix / np.sqrt(len(matrix))).reshape(keys.shape)


def decoded(tiny: Tiny, executor: NativeExecutor, format: str, page: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys and values [layers, heads, 16, d] of a page as attention means them, and the keys' scales."""
    d, layers = tiny.size, len(tiny.tables)
    heads = np.frombuffer(executor.read_page(page), np.uint8).reshape(layers, tiny.heads, head_bytes(format, d))
    if format == "f16":
        values = heads.view(np.float16).astype(np.float64)
        keys = values[..., : d * PAGE_SIZE].reshape(layers, tiny.heads, d, PAGE_SIZE).swapaxes(2, 3)
        return keys, values[..., d * PAGE_SIZE :].reshape(layers, tiny.heads, PAGE_SIZE, d), np.zeros(keys.shape[:3])
    half = d * PAGE_SIZE
    scales = heads[..., 2 * half :].copy().view(np.float16).astype(np.float64).reshape(layers, tiny.heads, 2, PAGE_SIZE)
    q = heads[..., : 2 * half].view(np.int8).astype(np.float64)
    keys = q[..., :half].reshape(layers, tiny.heads, d // 2, PAGE_SIZE, 2).transpose(0, 1, 3, 2, 4)
    values = q[..., half:].reshape(layers, tiny.heads, PAGE_SIZE // 2, d, 2).transpose(0, 1, 2, 4, 3)
    keys = keys.reshape(layers, tiny.heads, PAGE_SIZE, d) * scales[:, :, 0, :, None]
    return hadamard(keys), values.reshape(keys.shape) * scales[:, :, 1, :, None], scales[:, :, 0]


def turned(tiny: Tiny, keys: np.ndarray, shift: int) -> np.ndarray:
    """Keys [layers, heads, ..., d] rotated on by ``shift`` positions."""
    result = keys.copy()
    for layer, table in enumerate(tiny.tables):
        angles = shift * tiny.rope[table].astype(np.float64)
        n = len(angles)
        one, other = keys[layer, ..., :n], keys[layer, ..., n : 2 * n]
        result[layer, ..., :n] = one * np.cos(angles) - other * np.sin(angles)
        result[layer, ..., n : 2 * n] = one * np.sin(angles) + other * np.cos(angles)
    return result


def move(executor: NativeExecutor, *moves: tuple[int, int, int, int, int, int]) -> None:
    executor.move_tokens(np.array(moves, np.int32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shift", [1, 37, -3, 5000])
def test_keys_are_rotated_on_and_values_kept(tiny: Tiny, format: str, isa: str, shift: int) -> None:
    """The tolerance is one rounding: of float16, or half a step of the int8 scale in every element before rotation."""
    executor = ran(tiny, format, isa)
    before = executor.read_page(5)
    move(executor, (1, 3, 5, 7, 9, shift))
    keys, values, _ = decoded(tiny, executor, format, 1)
    moved_keys, moved_values, scales = decoded(tiny, executor, format, 5)
    assert (moved_values[:, :, 7:16] == values[:, :, 3:12]).all()
    error = moved_keys[:, :, 7:16] - turned(tiny, keys[:, :, 3:12], shift)
    length = np.linalg.norm(keys[:, :, 3:12], axis=-1)
    allowed = 2.0**-10 * length + np.sqrt(tiny.size) * 0.51 * scales[:, :, 7:16]
    assert (np.linalg.norm(error, axis=-1) <= allowed).all()
    assert np.abs(error).max() < 0.1 * np.abs(keys).max(), "so that the test above can fail"
    untouched = decoded(tiny, executor, format, 5)[0][:, :, :7]
    assert (untouched == 0).all() and before == bytes(executor.page_bytes)


@pytest.mark.parametrize("format", FORMATS)
def test_without_a_shift_bits_are_kept(tiny: Tiny, format: str) -> None:
    executor = ran(tiny, format)
    move(executor, (1, 0, 4, 0, 16, 0), (0, 2, 5, 9, 7, 0), (5, 9, 6, 1, 7, 0))
    assert executor.read_page(4) == executor.read_page(1)
    for page, slot in ((5, 9), (6, 1)):
        pairs = zip(decoded(tiny, executor, format, page), decoded(tiny, executor, format, 0), strict=True)
        for moved, original in pairs:
            assert (moved[:, :, slot : slot + 7] == original[:, :, 2:9]).all()


@pytest.mark.parametrize("format", FORMATS)
def test_moves_are_made_in_their_order_by_any_number_of_threads(tiny: Tiny, format: str) -> None:
    """A page that was read is written later, and what was written is read."""
    moves = ((0, 0, 4, 3, 10, 5), (4, 3, 5, 0, 10, 7), (1, 0, 0, 0, 16, 0), (0, 4, 6, 4, 8, -2))
    pages = []
    for threads in (1, 3):
        executor = ran(tiny, format, threads=threads)
        move(executor, *moves)
        pages.append([executor.read_page(page) for page in range(10)])
    assert pages[0] == pages[1]
    assert pages[0][0] == pages[0][1]


@pytest.mark.parametrize("format", FORMATS)
def test_the_first_layers_keys_are_those_of_the_new_position(tiny: Tiny, format: str) -> None:
    """There a key depends on its token and position alone, so what is moved is what would be computed."""
    executor = ran(tiny, format)
    move(executor, (0, 0, 4, 0, 16, 20))
    tokens = np.arange(7, 7 + PAGE_SIZE, dtype=np.int32)
    pages = np.array([6, 7, 8], np.int32)
    executor.forward(
        Batch(tokens, np.array([20], np.int32), np.array([PAGE_SIZE], np.int32), pages, np.array([0, 3], np.int32))
    )
    computed = np.concatenate([decoded(tiny, executor, format, page)[0][0] for page in (7, 8)], axis=1)[:, 4:20]
    moved, _, scales = decoded(tiny, executor, format, 4)
    error = np.linalg.norm(moved[0] - computed, axis=-1)
    allowed = 2.0**-9 * np.linalg.norm(computed, axis=-1) + 2 * np.sqrt(tiny.size) * 0.51 * scales[0]
    assert (error <= allowed).all()


@pytest.mark.parametrize(
    "bad", [(0, 0, 4, 0, 17, 1), (0, 9, 4, 0, 8, 1), (0, 0, 4, 9, 8, 1), (0, 0, 10, 0, 1, 1), (-1, 0, 4, 0, 1, 1),
            (0, -1, 4, 0, 1, 1), (0, 0, 4, 0, 0, 1), (0, 0, 0, 1, 1, 1)]
)  # fmt: skip
def test_what_leaves_a_page_or_the_pool_is_refused_before_anything_is_written(
    tiny: Tiny, bad: tuple[int, int, int, int, int, int]
) -> None:
    executor = ran(tiny, "f16")
    with pytest.raises(ValueError, match="move of tokens"):
        move(executor, (0, 0, 5, 0, 4, 1), bad)
    assert executor.read_page(5) == bytes(executor.page_bytes)
