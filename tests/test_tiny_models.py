"""The tiny models themselves: deterministic, with the names, shapes and conventions of real files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from tests.k_quants import quantize
from tests.tiny_kinds import KINDS
from tests.tiny_models import MIXES, digest, gguf_tensors, gguf_type, hf_tensors, permute, write_gguf, write_hf

GGUF_KINDS = [kind for kind, tiny in KINDS.items() if tiny.gguf_architecture]
GOLDENS = Path(__file__).parent / "goldens"
# Relative RMS error of normal weights that each format's rounding may cost; a wrong bit layout costs far more.
ERRORS = {
    "F32": 0.0,
    "F16": 0.001,
    "BF16": 0.004,
    "Q8_0": 0.01,
    "Q6_K": 0.03,
    "Q5_0": 0.06,
    "Q5_1": 0.06,
    "Q5_K": 0.06,
    "Q4_0": 0.12,
    "Q4_1": 0.12,
    "Q4_K": 0.12,
    "IQ4_NL": 0.12,
    "Q3_K": 0.25,
    "Q2_K": 0.45,
}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_hf_directory_holds_the_weights(kind: str, tmp_path: Path) -> None:
    folder = write_hf(kind, tmp_path / "made" / kind)
    tensors = load_file(folder / "model.safetensors")
    expected = hf_tensors(kind)
    assert tensors.keys() == expected.keys()
    for name, values in expected.items():
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], values)
    config = json.loads((folder / "config.json").read_text())
    assert tensors["model.embed_tokens.weight"].shape == (config["vocab_size"], config["hidden_size"])
    assert ("lm_head.weight" in tensors) is not config["tie_word_embeddings"]


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_fits_the_vocabulary(kind: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(write_hf(kind, tmp_path) / "tokenizer.json"))
    text = "Hello there, the café costs 123 \n\n 🙂"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < tokenizer.get_vocab_size() <= KINDS[kind].vocab


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    first, second = (write_hf(kind, tmp_path / name) for name in ("first", "second"))
    for path in sorted(first.iterdir()):
        assert sha256(path) == sha256(second / path.name)
    assert digest(kind) != digest(kind, seed=1)
    if kind in GGUF_KINDS:
        assert sha256(write_gguf(kind, tmp_path / "a.gguf", "Q8_0")) == sha256(
            write_gguf(kind, tmp_path / "b.gguf", "Q8_0")
        )


def test_weights_do_not_change_between_versions() -> None:
    assert digest("llama") == "87d0a4f33672147c24466696abf08e4fabe10919cef4af4f90529c8a4d2b5534"


@pytest.mark.parametrize("kind", KINDS)
def test_goldens_belong_to_these_weights(kind: str) -> None:
    with np.load(GOLDENS / f"{kind}.npz") as golden:
        assert str(golden["digest"]) == digest(kind)
        assert golden["logits_3"].shape == (len(golden["positions_3"]), KINDS[kind].vocab)


@pytest.mark.parametrize("kind", GGUF_KINDS)
def test_gguf_names_shapes_and_values(kind: str, tmp_path: Path) -> None:
    tiny = KINDS[kind]
    reader = gguf.GGUFReader(write_gguf(kind, tmp_path / "model.gguf"))
    found = {tensor.name: tensor for tensor in reader.tensors}
    expected = gguf_tensors(kind)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert tuple(found[name].shape) == values.shape[::-1]  # GGUF counts dimensions from the innermost
        np.testing.assert_array_equal(found[name].data, values)
    assert reader.fields["general.architecture"].contents() == tiny.gguf_architecture
    assert reader.fields[f"{tiny.gguf_architecture}.block_count"].contents() == tiny.layers
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == tiny.vocab
    assert found["blk.0.attn_k.weight"].shape[1] == tiny.kv_heads * tiny.head_dim


@pytest.mark.parametrize(
    ("kind", "quant"), [("llama", "mixed"), ("llama-wide", "Q4_K_M"), ("gemma3-wide", "Q6_K"), ("qwen2", "Q4_0")]
)
def test_quantised_gguf_decodes_to_the_weights(kind: str, quant: str, tmp_path: Path) -> None:
    expected = gguf_tensors(kind)
    for tensor in gguf.GGUFReader(write_gguf(kind, tmp_path / "model.gguf", quant)).tensors:
        values = expected[tensor.name]
        assert tensor.tensor_type.name == gguf_type(tensor.name, values, quant)
        decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        error = np.sqrt(np.mean((decoded - values) ** 2) / np.mean(values**2))
        assert error <= ERRORS[tensor.tensor_type.name]
    assert set(MIXES["Q4_K_M"].values()) <= ERRORS.keys()


@pytest.mark.parametrize("kind", ERRORS)
def test_every_block_format_round_trips(kind: str) -> None:
    weights = hf_tensors("llama-wide")["model.layers.0.mlp.down_proj.weight"].copy()
    weights[0] = 0  # a row of zeros must stay zeros, not divide by them
    decoded = gguf.quants.dequantize(quantize(weights, kind), gguf.GGMLQuantizationType[kind])
    assert decoded.shape == weights.shape
    assert not decoded[0].any()
    assert np.sqrt(np.mean((decoded - weights) ** 2) / np.mean(weights**2)) <= ERRORS[kind]


def test_rows_that_do_not_fit_a_super_block_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 256"):
        quantize(np.zeros((2, 64), np.float32), "Q4_K")


def test_a_kind_without_faithful_gguf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gemma3-scaled"):
        write_gguf("gemma3-scaled", tmp_path / "model.gguf")


def test_rope_conventions() -> None:
    rows = np.arange(8, dtype=np.float32)[:, None]  # two heads of four
    assert permute(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    plain, stored = hf_tensors("qwen2"), gguf_tensors("qwen2")
    np.testing.assert_array_equal(stored["blk.0.attn_q.weight"], plain["model.layers.0.self_attn.q_proj.weight"])
    factors = gguf_tensors("llama3")["rope_freqs.weight"]
    assert factors[0] == 1 and factors[-1] == 8 and np.all(np.diff(factors) >= 0)
    assert np.any((factors > 1) & (factors < 8))  # the smooth part is covered too


def test_gemma_norms_are_stored_one_higher_in_gguf() -> None:
    plain, stored = hf_tensors("gemma3"), gguf_tensors("gemma3")
    name = "model.layers.0.post_attention_layernorm.weight"
    np.testing.assert_array_equal(stored["blk.0.post_attention_norm.weight"], plain[name] + np.float32(1))
