from __future__ import annotations

from pathlib import Path

import pytest

from sixfold.cli import show
from sixfold.cli.model_card import read_card
from sixfold.compile.plan import DATA_OFFSET, HEADER, build
from sixfold.store import resolve
from sixfold.weights.model_file import open_model
from tests.tiny_models import write_gguf, write_hf


@pytest.mark.parametrize(("kind", "quant"), [("qwen2", "mixed"), ("gemma3-wide", "Q4_K_M"), ("llama", "BF16")])
def test_the_packed_size_is_that_of_the_plan(tmp_path: Path, kind: str, quant: str) -> None:
    path = write_gguf(kind, tmp_path / "model.gguf", quant)
    card = read_card(resolve(str(path)))
    with open_model(path) as model:
        plan = build(model, cache=False)
    written = int(plan.data[: HEADER.itemsize].view(HEADER)[0]["data_bytes"])
    padding = 64 * (sum(use.tensors for use in card.formats) + len(card.rope_bases) + 1)
    ropes = written - card.packed_bytes  # the plan also holds the rope tables, and pads every tensor
    assert 0 <= ropes <= padding + 4 * 64 * len(card.rope_bases) and len(plan.data) > DATA_OFFSET


def test_json_says_what_the_model_is(sixfold_json, chat_model: str) -> None:
    shown = sixfold_json("show", chat_model, "--batch", 3, "--context", 20, "--plan")
    assert shown["architecture"] == "qwen2" and shown["context"] == 256 and shown["chat_template"] is True
    assert shown["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 3  # K and V, float16, KV heads, head size, layers
    assert shown["memory"]["kv"] == 3 * 32 * shown["kv_bytes_per_token"]  # two pages of 16 each
    assert shown["rope_bases"] == [1e6] and shown["windows"] == {"0": 3}
    assert {use["type"]: use["packed_as"] for use in shown["formats"]}["Q4_1"] == "int4/32 f16+min"
    assert shown["plan"]["passes"][0] == "fuse_qkv" and len(shown["plan"]["operators"]) == 2 + 3 * 8 + 2


def test_text_says_it_too(sixfold, base_model: str) -> None:
    text = sixfold("show", base_model).stdout
    for word in ("llama, 3 layers", "256 tokens", "no (a base model", "Q8_0", "int8/32 f16", "licence", "KV memory"):
        assert word in text
    assert "Passes" not in text


def test_plan_groups_layers_that_are_alike(sixfold, tmp_path: Path) -> None:
    path = write_gguf("gemma3", tmp_path / "gemma.gguf", "Q4_1")
    text = sixfold("show", path, "--plan").stdout
    for word in ("Passes: fuse_qkv", "Layer 0", "Layers 1-4, each", "Layer 5", "Layer 6", "attention window 8"):
        assert word in text
    assert "6 layers slide over 8, 1 layers see all" in text and "base 10000, base 1000000" in text
    with open_model(path) as model:
        operators = build(model).operators
    assert sum(len(alike) for _, rows in show.grouped(operators) for alike in rows) == len(operators)


def test_a_hugging_face_directory_with_rope_scaling(sixfold_json, tmp_path: Path) -> None:
    shown = sixfold_json("show", write_hf("llama3", tmp_path / "llama3"))
    assert shown["rope_scaling"] == "llama3 x8" and shown["rope_bases"] == [5e5] and shown["kind"] == "safetensors"


def test_a_model_that_is_not_here_is_not_downloaded(sixfold) -> None:
    done = sixfold("show", "smollm2")
    assert done.exit_code == 1 and "sixfold pull smollm2" in done.stderr
