"""Tiny random models of every architecture, the same bytes on every machine, as Hugging Face directories and as GGUF.

Owns: seeded weights, and both file layouts with the conventions of the real converters:

========================  ===============================  ====================================================
what                      Hugging Face                     GGUF
========================  ===============================  ====================================================
rope pairs (llama)        (i, i + d/2), "rotate half"      (2i, 2i+1): rows of Q and K are permuted when written
rope pairs (all others)   (i, i + d/2)                     (i, i + d/2): rows as they are
Gemma's RMSNorm           x * (1 + w)                      x * w: every norm is written as 1 + w
Llama-3 rope scaling      ``rope_scaling`` in config.json  tensor ``rope_freqs.weight`` that divides frequencies
========================  ===============================  ====================================================

Must not know: Sixfold itself. Configurations are in tests/tiny_kinds.py.
``python -m tests.tiny_models KIND DIRECTORY [GGUF_TYPE]`` writes one by hand.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

from tests import tiny_tokenizer
from tests.k_quants import quantize
from tests.tiny_kinds import KINDS, Tiny

# Types that a mix gives to tensors whose name holds the key; "" is for the rest.
MIXES: Mapping[str, Mapping[str, str]] = {
    "mixed": {
        "attn_v": "Q8_0",
        "attn_k": "Q5_0",
        "attn_q": "Q5_1",
        "ffn_down": "Q4_1",
        "token_embd": "F16",
        "": "Q4_0",
    },
    "Q4_K_M": {"attn_v": "Q6_K", "ffn_down": "Q6_K", "token_embd": "Q8_0", "": "Q4_K"},
}


def normal(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Almost normal float64 values, mean 0 and deviation 1, that depend on seed and name only.

    Sums of four 16-bit uniforms from PCG64's raw stream, which numpy keeps stable between versions, and exact
    arithmetic: the same bits everywhere, unlike ``Generator.normal``.
    """
    stream = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
    raw = np.atleast_1d(stream.random_raw(math.prod(shape))).astype("<u8")
    uniform = raw.view("<u2").reshape(-1, 4).astype(np.float64) / 65536
    return ((uniform.sum(1) - 2 + 2 / 65536) * math.sqrt(3)).reshape(shape)


def hf_tensors(kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    """All weights by their Hugging Face names, float32, scaled so that logits have a deviation of about 3."""
    return dict(_tensors(KINDS[kind], seed))


def _tensors(tiny: Tiny, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    def matrix(name: str, rows: int, cols: int, gain: float = 1.0) -> tuple[str, np.ndarray]:
        return name, (normal(seed, name, (rows, cols)) * (gain / math.sqrt(cols))).astype(np.float32)

    def norm(name: str, size: int, mean: float = 1.0) -> tuple[str, np.ndarray]:
        stored = mean - 1.0 if tiny.gemma else mean  # Gemma stores the difference from 1
        return name, (normal(seed, name, (size,)) * 0.2 + stored).astype(np.float32)

    hidden, query, key = tiny.hidden, tiny.heads * tiny.head_dim, tiny.kv_heads * tiny.head_dim
    yield matrix("model.embed_tokens.weight", tiny.vocab, hidden, gain=3.0)
    for layer in range(tiny.layers):
        prefix = f"model.layers.{layer}."
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        yield norm(prefix + "input_layernorm.weight", hidden)
        if tiny.gemma:  # large norms after a block, as in the real ones, or the scaled embedding drowns every block
            yield norm(prefix + "post_attention_layernorm.weight", hidden, mean=4.0)
            yield norm(prefix + "pre_feedforward_layernorm.weight", hidden)
            yield norm(prefix + "post_feedforward_layernorm.weight", hidden, mean=4.0)
        else:
            yield norm(prefix + "post_attention_layernorm.weight", hidden)
        yield matrix(attention + "q_proj.weight", query, hidden, gain=1.5)
        yield matrix(attention + "k_proj.weight", key, hidden, gain=1.5)
        yield matrix(attention + "v_proj.weight", key, hidden)
        yield matrix(attention + "o_proj.weight", hidden, query)
        if tiny.qk_norm:
            yield norm(attention + "q_norm.weight", tiny.head_dim, mean=1.5)
            yield norm(attention + "k_norm.weight", tiny.head_dim, mean=1.5)
        if tiny.bias:
            yield from _biases(seed, attention, query, key, tiny.head_dim)
        yield matrix(mlp + "gate_proj.weight", tiny.intermediate, hidden)
        yield matrix(mlp + "up_proj.weight", tiny.intermediate, hidden)
        yield matrix(mlp + "down_proj.weight", hidden, tiny.intermediate)
    yield norm("model.norm.weight", hidden)
    if not tiny.tied:
        yield matrix("lm_head.weight", tiny.vocab, hidden, gain=3.0)


def _biases(seed: int, attention: str, query: int, key: int, head_dim: int) -> Iterator[tuple[str, np.ndarray]]:
    """Q, K and V biases; the slowest-turning channels of each key head carry outliers, as they do in Qwen2.5."""
    for letter, size in (("q", query), ("k", key), ("v", key)):
        name = f"{attention}{letter}_proj.bias"
        values = normal(seed, name, (size,)) * 0.5
        if letter == "k":
            values[head_dim - 1 :: head_dim] += 40.0
            values[head_dim // 2 - 1 :: head_dim] -= 25.0
        yield name, values.astype(np.float32)


def digest(kind: str, seed: int = 0) -> str:
    """SHA-256 over names and values of all weights: says whether a golden belongs to these weights."""
    total = hashlib.sha256()
    for name, values in sorted(hf_tensors(kind, seed).items()):
        total.update(name.encode() + values.astype("<f4").tobytes())
    return total.hexdigest()


def hf_config(kind: str) -> dict[str, Any]:
    """What config.json holds."""
    tiny = KINDS[kind]
    family = tiny_tokenizer.FAMILIES[tiny.family]
    eos = [tiny_tokenizer.token_id(family, family.eos)]
    if kind == "llama3":  # Llama 3 instruct models end on more than one token
        eos.append(tiny_tokenizer.token_id(family, "<|eot_id|>"))
    return {
        "architectures": [tiny.architecture],
        "hidden_size": tiny.hidden,
        "intermediate_size": tiny.intermediate,
        "num_hidden_layers": tiny.layers,
        "num_attention_heads": tiny.heads,
        "num_key_value_heads": tiny.kv_heads,
        "max_position_embeddings": tiny.context,
        "vocab_size": tiny.vocab,
        "tie_word_embeddings": tiny.tied,
        "torch_dtype": "float32",
        "bos_token_id": tiny_tokenizer.token_id(family, family.bos),
        "eos_token_id": eos if len(eos) > 1 else eos[0],
        **tiny.config,
    }


def write_hf(kind: str, directory: Path, seed: int = 0) -> Path:
    """Write config.json, model.safetensors and the tokenizer into ``directory`` (made if absent); returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(hf_config(kind), indent=2))
    save_file(hf_tensors(kind, seed), directory / "model.safetensors", metadata={"format": "pt"})
    tiny_tokenizer.write_hf(tiny_tokenizer.FAMILIES[KINDS[kind].family], directory)
    return directory


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# The norm before the MLP goes by another name where there is also one after attention.
_GGUF_NORMS = {"post_attention_layernorm": "ffn_norm"}
_GGUF_NORMS_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(name: str, gemma: bool) -> str:
    """The GGUF name of a Hugging Face tensor."""
    stem, _, suffix = name.rpartition(".")
    known = {**_GGUF_NAMES, **(_GGUF_NORMS_GEMMA if gemma else _GGUF_NORMS)}
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{known[rest]}.{suffix}"
    return f"{known[stem]}.{suffix}"


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder each head's rows from pairs (i, i + d/2) to pairs (2i, 2i+1)."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def rope_factors(tiny: Tiny) -> np.ndarray:
    """Llama 3's frequency divisors ``[head_dim / 2]``: 1 for short wavelengths, ``factor`` for long, smooth between."""
    rope = tiny.config["rope_scaling"]
    exponent = np.arange(0, tiny.head_dim, 2, dtype=np.float64) / tiny.head_dim
    turns = rope["original_max_position_embeddings"] * tiny.config["rope_theta"] ** -exponent / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def gguf_tensors(kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    """All weights as a GGUF file holds them, before quantisation."""
    tiny = KINDS[kind]
    tensors = {}
    for name, values in _tensors(tiny, seed):
        if tiny.gguf_architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            values = permute(values, tiny.heads if ".q_proj." in name else tiny.kv_heads)
        if tiny.gemma and name.endswith("norm.weight"):
            values = values + np.float32(1)
        tensors[gguf_name(name, tiny.gemma)] = values
    if tiny.config.get("rope_scaling"):
        tensors["rope_freqs.weight"] = rope_factors(tiny)
    return tensors


def gguf_type(name: str, values: np.ndarray, quant: str) -> str:
    """The type that ``quant`` (a type or one of MIXES) gives to a tensor: only matrices are quantised."""
    if values.ndim == 1:
        return "F32"
    if quant not in MIXES:
        return quant
    return next(kind for part, kind in MIXES[quant].items() if part in name)


def write_gguf(kind: str, path: Path, quant: str = "F32", seed: int = 0) -> Path:
    """Write the model as one GGUF file, matrices as ``quant``: a GGUF type name or one of MIXES. Returns ``path``."""
    tiny = KINDS[kind]
    if not tiny.gguf_architecture:
        raise ValueError(f"{kind} has settings that no GGUF key of its architecture carries")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, tiny.gguf_architecture)
    _add_metadata(tiny, kind, writer)
    tiny_tokenizer.add_to_gguf(tiny_tokenizer.FAMILIES[tiny.family], writer, tiny.vocab)
    for name, values in gguf_tensors(kind, seed).items():
        chosen = gguf_type(name, values, quant)
        writer.add_tensor(name, quantize(values, chosen), raw_dtype=gguf.GGMLQuantizationType[chosen])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_metadata(tiny: Tiny, kind: str, writer: gguf.GGUFWriter) -> None:
    prefix = tiny.gguf_architecture + "."
    writer.add_name(f"tiny {kind}")
    writer.add_context_length(tiny.context)
    writer.add_embedding_length(tiny.hidden)
    writer.add_block_count(tiny.layers)
    writer.add_feed_forward_length(tiny.intermediate)
    writer.add_head_count(tiny.heads)
    writer.add_head_count_kv(tiny.kv_heads)
    writer.add_layer_norm_rms_eps(tiny.config["rms_norm_eps"])
    if "head_dim" in tiny.config:
        writer.add_key_length(tiny.head_dim)
        writer.add_value_length(tiny.head_dim)
    if tiny.gguf_architecture == "llama":
        writer.add_vocab_size(tiny.vocab)
        writer.add_rope_dimension_count(tiny.head_dim)
    rope = tiny.config.get("rope_parameters", tiny.config)
    for key, value in {"rope.freq_base": rope["rope_theta"], **tiny.gguf}.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(prefix + key, value)


if __name__ == "__main__":
    chosen_kind, target, *rest = sys.argv[1:]
    print(write_gguf(chosen_kind, Path(target), *rest) if rest else write_hf(chosen_kind, Path(target)))
