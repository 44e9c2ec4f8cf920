"""Adapters on compiled plans: against the numpy reference with merged weights, on every instruction set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sixfold import _native
from sixfold.compile import Plan, build
from sixfold.compile.adapter import pack_adapter
from sixfold.errors import ModelFileError
from sixfold.models.network import load_network
from sixfold.models.source import HF_NAMES
from sixfold.runtime.batch import Batch
from sixfold.runtime.native import NativeExecutor, native_adapter
from sixfold.runtime.reference import ReferenceModel
from sixfold.weights.model_file import open_model
from sixfold.weights.peft import AdapterFile, read_adapter
from tests.adapters import tiny_adapter
from tests.runtime.test_kernels import ISAS
from tests.tiny_models import write_gguf, write_hf

TOKENS = [5, 17, 200, 3, 3, 90, 250, 41, 7, 120, 66, 2]


class Merged(ReferenceModel):
    """The reference with W + scale * B A in place of W."""

    def __init__(self, network: object, adapter: AdapterFile | None) -> None:
        super().__init__(network)  # type: ignore[arg-type]
        for module, part in ({} if adapter is None else adapter.parts).items():
            _, layer, kind = module.split(".", 2)
            name = f"blk.{layer}.{HF_NAMES[kind]}.weight"
            product = part.b.dequantize().astype(np.float64) @ part.a.dequantize().astype(np.float64)
            self._weights[name] = (self._matrix(name) + part.scale * product).astype(np.float32)


def forward(executor: NativeExecutor, tokens: list[int], slot: int) -> np.ndarray:
    pages = -(-len(tokens) // 16)
    ids = np.array(tokens, np.int32)
    one = np.array([len(tokens)], np.int32)
    executor.forward(
        Batch(ids, np.zeros(1, np.int32), one, np.arange(pages, dtype=np.int32), np.array([0, pages], np.int32),
              np.array([slot], np.int32))
    )  # fmt: skip
    return executor.logits(np.arange(len(tokens), dtype=np.int32)).copy()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3", "mistral"])
@pytest.mark.parametrize("layout", ["gguf", "hf"])
def test_a_float_model_with_an_adapter_is_the_model_with_merged_weights(
    isa: str, kind: str, layout: str, tmp_path: Path
) -> None:
    """Also of GGUF, whose Llama has the rows of Q and K in an order of its own."""
    path = write_gguf(kind, tmp_path / "m.gguf") if layout == "gguf" else write_hf(kind, tmp_path / "hf")
    file = read_adapter(tiny_adapter(tmp_path / "a", kind, rank=5, rank_pattern={"v_proj": 11, "down_proj": 3}))
    with open_model(path) as model:
        plan = build(model, cache=False)
        network = load_network(model)
        wanted = [Merged(network, adapter).logits(TOKENS) for adapter in (file, None)]
    executor = NativeExecutor(plan, num_pages=4, max_tokens=64, threads=2, isa=isa)
    plain = forward(executor, TOKENS, -1)
    executor.set_adapter(3, native_adapter(pack_adapter(file, plan)))
    got = [forward(executor, TOKENS, slot) for slot in (3, -1)]
    # KV in float16 is what is left of a difference
    for found, reference in zip(got, wanted, strict=True):
        np.testing.assert_allclose(found, reference, atol=6e-3 * np.abs(reference).max())
    assert np.abs(wanted[0] - wanted[1]).max() > 0.3, "the adapter changes next to nothing"
    np.testing.assert_array_equal(got[1], plain)


@pytest.mark.parametrize("kind, quant", [("llama-wide", "Q4_0"), ("gemma3-wide", "Q4_K_M"), ("qwen3", "Q8_0")])
def test_a_quantised_model_with_an_adapter(kind: str, quant: str, tmp_path: Path) -> None:
    """Products with the model's own weights round activations to int8; an adapter's do not. So the model with it is
    about as far from the reference as without: the difference lies in the activations that are rounded."""
    file = read_adapter(tiny_adapter(tmp_path / "a", kind, rank=16))
    with open_model(write_gguf(kind, tmp_path / "m.gguf", quant)) as model:
        plan = build(model, cache=False)
        network = load_network(model)
        wanted = [Merged(network, adapter).logits(TOKENS) for adapter in (None, file)]
    executor = NativeExecutor(plan, num_pages=4, max_tokens=64, threads=1)
    executor.set_adapter(0, native_adapter(pack_adapter(file, plan)))
    plain, adapted = (
        np.sqrt(np.mean((forward(executor, TOKENS, slot) - reference) ** 2) / np.mean(reference**2))
        for slot, reference in zip((-1, 0), wanted, strict=True)
    )
    assert plain < 0.035
    assert adapted < 1.25 * plain


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_values_are_kept_as_they_are(dtype: type, tmp_path: Path) -> None:
    file = read_adapter(tiny_adapter(tmp_path / "a", "llama", dtype=dtype, rank=7))
    with open_model(write_gguf("llama", tmp_path / "m.gguf")) as model:
        packed = pack_adapter(file, build(model, cache=False))
    assert packed.values == {np.float32: 0, np.float16: 1}[dtype]
    up, _, offset, tiles, width, first = packed.records[2].tolist()  # B of K
    assert (up, tiles, width, first) == (1, 2, 8, 8)
    size = np.dtype(dtype).itemsize
    stored = packed.data[offset : offset + tiles * width * 16 * size].view(dtype).reshape(tiles, width, 16)
    b = file.parts["layers.0.self_attn.k_proj"].b.dequantize()
    np.testing.assert_array_equal(stored.transpose(0, 2, 1).reshape(32, 8)[:, :7], b)
    assert not stored[:, 7].any()


def test_only_some_matrices(tmp_path: Path) -> None:
    with open_model(write_gguf("llama", tmp_path / "m.gguf")) as model:
        plan = build(model, cache=False)
        network = load_network(model)
        for names in (["k_proj"], ["up_proj", "q_proj"], ["o_proj"], ["down_proj", "v_proj"]):
            file = read_adapter(tiny_adapter(tmp_path / names[0], "llama", names=names))
            executor = NativeExecutor(plan, num_pages=4, max_tokens=64, threads=1)
            executor.set_adapter(0, native_adapter(pack_adapter(file, plan)))
            wanted = Merged(network, file).logits(TOKENS)
            np.testing.assert_allclose(forward(executor, TOKENS, 0), wanted, atol=6e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("other", ["llama-wide", "gemma3"])
def test_an_adapter_of_another_model_is_refused(other: str, tmp_path: Path) -> None:
    file = read_adapter(tiny_adapter(tmp_path / "a", other))
    with open_model(write_gguf("llama", tmp_path / "m.gguf")) as model:
        plan = build(model, cache=False)
    with pytest.raises(ModelFileError, match="does not fit the model"):
        pack_adapter(file, plan)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    with open_model(write_gguf("llama", tmp_path_factory.mktemp("m") / "m.gguf")) as model:
        return build(model, cache=False)


def test_the_executor_trusts_no_adapter(plan: Plan, tmp_path: Path) -> None:
    packed = pack_adapter(read_adapter(tiny_adapter(tmp_path / "a", "llama")), plan)
    executor = NativeExecutor(plan, num_pages=4, max_tokens=64, threads=1)
    rng = np.random.default_rng(0)
    for _ in range(300):
        records = packed.records.copy()
        records[rng.integers(len(records)), rng.integers(6)] = rng.choice([-1, 0, 1, 3, 17, 1 << 20, 1 << 40, 1 << 62])
        try:
            executor.set_adapter(0, _native.Adapter(packed.values, packed.data, packed.scales, records))
        except ValueError:
            continue
        forward(executor, TOKENS, 0)  # whatever it computes, it stays within its memory
    with pytest.raises(ValueError, match="floats"):
        _native.Adapter(3, packed.data, packed.scales, packed.records)
    with pytest.raises(ValueError, match="beyond the data"):
        _native.Adapter(packed.values, packed.data[:1000], packed.scales, packed.records)
    for slot in (-2, 1, 4096):
        with pytest.raises(ValueError, match="not loaded"):
            forward(executor, TOKENS, slot)
    with pytest.raises(ValueError, match="no such slot"):
        executor.set_adapter(-1, None)
