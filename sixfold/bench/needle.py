"""Recall over a long context: a small model that is made to look things up, and asked for what was planted.

Owns: the model's weights, the text, and what was recalled. Must not know: how results are shown.

The model has one layer with a single purpose. A planted token says "the value of key k is v", a question asks for k,
and everything else is filler. The question's query is the code of k, a planted token's key as well, and its value the
code of v, which the head turns into the token for v: the answer is right if attention finds one token among all others,
at any distance. Codes lie in rope's slowest pairs, which do not turn noticeably within the context.

    residual stream    code of a key, to be found | code of a key, asked for | code of a value | what attention brings
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sixfold.compile import Plan, build
from sixfold.runtime.batch import PAGE_SIZE, Batch
from sixfold.runtime.native import NativeExecutor
from sixfold.weights.model_file import open_model

CODE = 32  # elements of a code
HEAD = 64
KEYS = VALUES = 16
FILLERS = 512
STEP = 512  # tokens of the context that are run at once
PLANTED = FILLERS  # the first planted token: one for each key and value
QUESTIONS = PLANTED + KEYS * VALUES
ANSWERS = QUESTIONS + KEYS
VOCABULARY = ANSWERS + VALUES


def write_model(directory: Path, context: int, seed: int = 0) -> Path:
    """As a Hugging Face directory of the Llama architecture, in float32."""
    random_bits = np.random.default_rng(seed)
    hidden = 4 * CODE
    keys, values = (_codes(count) for count in (KEYS, VALUES))
    embedding = np.zeros((VOCABULARY, hidden), np.float32)
    fillers = random_bits.standard_normal((FILLERS, 3 * CODE))  # as likely to be taken for a key as chance has it
    embedding[:FILLERS, : 3 * CODE] = fillers * np.sqrt(2 * CODE) / np.linalg.norm(fillers, axis=1, keepdims=True)
    for key in range(KEYS):
        for value in range(VALUES):
            embedding[PLANTED + key * VALUES + value, :CODE] = keys[key]
            embedding[PLANTED + key * VALUES + value, 2 * CODE : 3 * CODE] = values[value]
        embedding[QUESTIONS + key, CODE : 2 * CODE] = np.sqrt(2) * keys[key]
    head = np.zeros((VOCABULARY, hidden), np.float32)
    head[ANSWERS:, 3 * CODE :] = values
    project = {name: np.zeros((HEAD, hidden), np.float32) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    slow = _slow_elements()
    for i in range(CODE):
        project["q_proj"][slow[i], CODE + i] = 2.0
        project["k_proj"][slow[i], i] = 2.0
        project["v_proj"][i, 2 * CODE + i] = 1.0
    out = np.zeros((hidden, HEAD), np.float32)
    out[3 * CODE + np.arange(CODE), np.arange(CODE)] = 4.0
    project["o_proj"] = out
    layer = "model.layers.0."
    ones, none = np.ones(hidden, np.float32), np.zeros((CODE, hidden), np.float32)
    tensors = {
        "model.embed_tokens.weight": embedding, "model.norm.weight": ones, "lm_head.weight": head,
        layer + "input_layernorm.weight": ones, layer + "post_attention_layernorm.weight": ones,
        layer + "mlp.gate_proj.weight": none, layer + "mlp.up_proj.weight": none,
        layer + "mlp.down_proj.weight": none.T.copy(),
        **{f"{layer}self_attn.{name}.weight": matrix for name, matrix in project.items()},
    }  # fmt: skip
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "hidden_size": hidden, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "head_dim": HEAD, "intermediate_size": CODE, "vocab_size": VOCABULARY, "rope_theta": 1e14,
        "max_position_embeddings": context, "tie_word_embeddings": False,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    _write_safetensors(directory / "model.safetensors", tensors)
    return directory


def recall(
    directory: Path, context: int, kv_format: str, threads: int | None, seed: int, report: Callable[[int], None]
) -> dict[str, Any]:
    """Plants a value for every key at depths from the first token to the last page, and asks for each at the end."""
    with open_model(write_model(directory, context)) as model:
        plan = build(model, cache=False)
    source = random.Random(seed)
    wanted = {key: source.randrange(VALUES) for key in range(KEYS)}
    text = [source.randrange(FILLERS) for _ in range(context - 1)]
    depths = [round(i * (len(text) - 1) / (KEYS - 1)) for i in range(KEYS)]
    for (key, value), depth in zip(wanted.items(), depths, strict=True):
        text[depth] = PLANTED + key * VALUES + value
    pages = -(-context // PAGE_SIZE)
    executor = _executor(plan, pages, kv_format, threads)
    began = time.perf_counter()
    for start in range(0, len(text), STEP):
        _run(executor, text[start : start + STEP], start)
        report(start)
    seconds = time.perf_counter() - began
    answers = [_answer(executor, key, len(text)) for key in wanted]
    right = sum(answer == value for answer, value in zip(answers, wanted.values(), strict=True))
    return {"context": context, "kv_format": kv_format, "asked": KEYS, "right": right, "fill_seconds": seconds}


def _executor(plan: Plan, pages: int, kv_format: str, threads: int | None) -> NativeExecutor:
    return NativeExecutor(plan, num_pages=pages, max_tokens=STEP, threads=threads, kv_format=kv_format, max_sequences=1)


def _answer(executor: NativeExecutor, key: int, position: int) -> int:
    """The question stands in the last slot, where the one before has stood."""
    _run(executor, [QUESTIONS + key], position)
    return int(executor.logits(np.zeros(1, np.int32))[0].argmax()) - ANSWERS


def _run(executor: NativeExecutor, tokens: Sequence[int], start: int) -> None:
    pages = -(-(start + len(tokens)) // PAGE_SIZE)
    one = np.array([start], np.int32), np.array([len(tokens)], np.int32)
    table = np.arange(pages, dtype=np.int32)
    executor.forward(Batch(np.array(tokens, np.int32), *one, table, np.array([0, pages], np.int32)))


def _codes(count: int) -> np.ndarray:
    """[count, CODE] of +1 and -1, orthogonal: rows of a Hadamard matrix."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < CODE:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix[1 : count + 1]


def _slow_elements() -> list[int]:
    """Those of a head that rope turns least: the last pairs (i, i + HEAD / 2)."""
    pairs = range(HEAD // 2 - CODE // 2, HEAD // 2)
    return [*pairs, *(i + HEAD // 2 for i in pairs)]


def _write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header: dict[str, Any] = {}
    at = 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(np.ascontiguousarray(values).tobytes())
