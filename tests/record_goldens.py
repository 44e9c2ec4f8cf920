"""Record tests/goldens/*.npz: logits of Hugging Face transformers in float32, the truth our executors are held to.

An optional tool: tests read the files it wrote and need neither torch nor transformers. From the repository's root:

    python -m venv /tmp/goldens && /tmp/goldens/bin/pip install torch transformers safetensors tokenizers gguf numpy
    /tmp/goldens/bin/python -m tests.record_goldens tiny
    /tmp/goldens/bin/python -m tests.record_goldens smollm2 path/to/SmolLM2-135M-Instruct.Q4_1.gguf
    /tmp/goldens/bin/python -m tests.record_goldens gemma3-270m path/to/gemma-3-270m-q4_k_m.gguf

Tiny models (every kind of tests/tiny_kinds.py) are random, written by tests/tiny_models.py and loaded as Hugging Face
directories. Of real models every tensor of the GGUF file is dequantised to float32 and put into the transformers model.
All runs are on the CPU with eager attention and float32 throughout.

Arrays, for the prompt numbers i = 0, 1, ...; P positions, V the vocabulary:
- ``ids_i`` int32 [tokens], ``positions_i`` int32 [P]: logits are those after the token at each position
- tiny: ``logits_i`` float32 [P, V]; ``digest``: tests.tiny_models.digest of the weights
- real: ``top_ids_i``, ``top_logits_i`` [P, 32], best first; ``sample_ids`` [256], the same for all, ``sample_logits_i``
  [P, 256]; ``digest``: SHA-256 of the GGUF file. The prompts' ids are in goldens/prompts.json: llama.cpp's tokenizer
  made them, so they are also the truth for our tokenizers.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from tests.tiny_kinds import KINDS
from tests.tiny_models import digest, gguf_name, write_hf

GOLDENS = Path(__file__).parent / "goldens"
TINY_LENGTHS = (1, 7, 40, 150)  # around Gemma's window of 8 tokens, and past the 64 that Llama 3's scaling starts at
TINY_POSITIONS = (0, 3, 6, 7, 8, 9, 15, 16, 23, 39, 64, 100, 149)
TOP, SAMPLE = 32, 256


def prompt_ids(length: int, vocab: int) -> np.ndarray:
    """The tokens of the tiny models' prompts."""
    raw = np.random.PCG64(np.random.SeedSequence([7, length])).random_raw(length)
    return (raw % np.uint64(vocab)).astype(np.int32)


def forward(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    """Logits ``[tokens, vocab]`` of one prompt, without a cache."""
    with torch.no_grad():
        rows = model(torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0]
    assert rows.dtype == torch.float32
    return rows.numpy()


def record_tiny() -> None:
    for kind, tiny in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            model = AutoModelForCausalLM.from_pretrained(
                write_hf(kind, Path(folder)), dtype=torch.float32, attn_implementation="eager"
            ).eval()
        arrays: dict[str, Any] = {"digest": digest(kind)}
        for index, length in enumerate(TINY_LENGTHS):
            ids = prompt_ids(length, tiny.vocab)
            positions = np.array([position for position in TINY_POSITIONS if position < length], np.int32)
            arrays |= {f"ids_{index}": ids, f"positions_{index}": positions}
            arrays[f"logits_{index}"] = forward(model, ids)[positions]
        save(kind, arrays)


def load_gguf(path: Path) -> torch.nn.Module:
    """A transformers model with the dequantised weights of a ``llama`` or ``gemma3`` GGUF file."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()

    def value(key: str) -> Any:
        return reader.fields[f"{architecture}.{key}"].contents()

    weights = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    shape = {
        "vocab_size": len(weights["token_embd.weight"]),
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in weights,
        "rope_theta": value("rope.freq_base"),
    }
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="eager"))
    elif architecture == "gemma3":
        head_dim = value("attention.key_length")
        extra = {"head_dim": head_dim, "query_pre_attn_scalar": head_dim, "rope_local_base_freq": 10000.0}
        window = {"sliding_window": value("attention.sliding_window"), "sliding_window_pattern": 6}
        model = Gemma3ForCausalLM(Gemma3TextConfig(**shape, **extra, **window, attn_implementation="eager"))
    else:
        raise SystemExit(f"no transformers model for architecture {architecture}")
    fill(model.float(), weights, architecture)
    return model.eval()


def fill(model: torch.nn.Module, weights: dict[str, np.ndarray], architecture: str) -> None:
    """Put GGUF weights into a transformers model, undoing what the converter did to Q, K and Gemma's norms."""
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    left = set(weights)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # tied weights come once
            stored = gguf_name(name, architecture == "gemma3")
            values = np.array(weights[stored], np.float32)
            left.discard(stored)
            if architecture == "llama":
                for projection, count in heads.items():
                    values = unpermute(values, count) if f".{projection}." in name else values
            elif name.endswith("norm.weight"):
                values = values - np.float32(1)
            assert parameter.shape == values.shape, name
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
    assert not left, f"tensors that the model has no place for: {sorted(left)}"


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder each head's rows from rope pairs (2i, 2i+1) back to pairs (i, i + d/2)."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def record_real(name: str, path: Path) -> None:
    model = load_gguf(path)
    vocab = model.config.vocab_size
    sample = np.random.Generator(np.random.PCG64(7)).choice(vocab, SAMPLE, replace=False).astype(np.int32)
    arrays: dict[str, Any] = {"digest": hashlib.sha256(path.read_bytes()).hexdigest(), "sample_ids": sample}
    prompts = json.loads((GOLDENS / "prompts.json").read_text(encoding="utf-8"))[name]
    for index, prompt in enumerate(prompts):
        ids = np.array(prompt["ids"], np.int32)
        positions = np.unique(np.array([0, 1, 5, len(ids) // 2, len(ids) - 2, len(ids) - 1], np.int32))
        rows = forward(model, ids)[positions]
        top = np.argsort(-rows, axis=1, kind="stable")[:, :TOP]
        arrays |= {f"ids_{index}": ids, f"positions_{index}": positions, f"top_ids_{index}": top.astype(np.int32)}
        arrays[f"top_logits_{index}"] = np.take_along_axis(rows, top, axis=1)
        arrays[f"sample_logits_{index}"] = rows[:, sample]
    save(name, arrays)


def save(name: str, arrays: dict[str, Any]) -> None:
    path = GOLDENS / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    what, *files = sys.argv[1:] or [""]
    if what == "tiny":
        record_tiny()
    elif files:
        record_real(what, Path(files[0]))
    else:
        raise SystemExit(__doc__)
