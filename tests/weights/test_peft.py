"""Adapters as PEFT writes them: what is read, and everything that is refused with a reason."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sixfold.errors import ModelFileError, SixfoldError, UnsupportedModelError
from sixfold.weights.peft import read_adapter
from tests.adapters import ALL, module, tiny_adapter

Q = "layers.1.self_attn.q_proj"


def change(folder: Path, **config: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def retensor(folder: Path, edit: Any) -> Path:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_adapter(tmp_path / "adapter", "llama")


def test_factors_scales_and_digest(folder: Path) -> None:
    file = read_adapter(folder)
    assert len(file.parts) == 3 * 7 and file.rank == 8
    stored = load_file(folder / "adapter_model.safetensors")
    part = file.parts[Q]
    np.testing.assert_array_equal(part.a.dequantize(), stored[f"base_model.model.model.{Q}.lora_A.weight"])
    np.testing.assert_array_equal(part.b.dequantize(), stored[f"base_model.model.model.{Q}.lora_B.weight"])
    assert part.scale == 2.0
    assert read_adapter(folder).digest == file.digest
    assert read_adapter(change(folder, lora_alpha=4)).digest != file.digest
    assert read_adapter(folder).parts[Q].scale == 0.5
    assert read_adapter(change(folder, use_rslora=True)).parts[Q].scale == 4 / math.sqrt(8)


@pytest.mark.parametrize(
    "key", ["q_proj", "self_attn.q_proj", f"model.{Q}", r".*\.q_proj", r"model.layers.\d+.self_attn.q_proj"]
)
def test_patterns_of_rank_and_alpha(tmp_path: Path, key: str) -> None:
    folder = tiny_adapter(tmp_path / "a", "llama", rank_pattern={"q_proj": 4}, alpha_pattern={key: 6})
    file = read_adapter(folder)
    assert file.parts[Q].rank == 4 and file.parts[Q].scale == 1.5
    other = file.parts["layers.0.mlp.up_proj"]
    assert other.rank == 8 and other.scale == 2.0


@pytest.mark.parametrize(
    "prefix", ["base_model.model.", "", "base_model.model.model.language_model.", "base_model.model.language_model."]
)
def test_names_of_both_layouts(tmp_path: Path, prefix: str) -> None:
    folder = tiny_adapter(tmp_path / "a", "gemma3", prefix=prefix)
    if "language_model" in prefix:
        folder = retensor(
            folder,
            lambda t: t.update({n.replace("language_model.model.", "language_model."): t.pop(n) for n in list(t)}),
        )
    wanted = {module(layer, name).removeprefix("model.") for layer in range(7) for name in ALL}
    assert set(read_adapter(folder).parts) == wanted


@pytest.mark.parametrize("targets", ["all-linear", r".*\.(q|k)_proj", None, ["self_attn.q_proj", "k_proj"]])
def test_targets_by_list_pattern_and_word(tmp_path: Path, targets: Any) -> None:
    folder = tiny_adapter(tmp_path / "a", "llama", names=["q_proj", "k_proj"])
    assert len(read_adapter(change(folder, target_modules=targets)).parts) == 6


REFUSED = [
    ({"peft_type": "IA3"}, "IA3"),
    ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
    ({"use_dora": True}, "use_dora"),
    ({"bias": "all"}, "bias='all'"),
    ({"lora_bias": True}, "lora_bias"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"target_parameters": ["x"]}, "target_parameters"),
    ({"something_new": 3}, "something_new"),
    ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
    ({"alpha_pattern": {"(a+)+": 1}}, "pattern"),
    ({"alpha_pattern": {"a*b*c*d": 1}}, "pattern"),
]  # fmt: skip
BROKEN = [
    ({"r": 0}, "r=0"), ({"r": True}, "r=True"), ({"r": 4}, "not of rank 4"), ({"r": 100000}, "r=100000"),
    ({"lora_alpha": None}, "lora_alpha"), ({"lora_alpha": float("inf")}, "lora_alpha"), ({"use_rslora": 1}, "rslora"),
    ({"target_modules": ["q_proj"]}, "does not name"), ({"target_modules": ["lm_head"]}, "lm_head"),
    ({"target_modules": [3]}, "target_modules"), ({"rank_pattern": {"q_proj": 3}}, "not of rank 3"),
    ({"rank_pattern": [1]}, "rank_pattern"), ({"alpha_pattern": {"q_proj": "x"}}, "alpha"),
    ({"alpha_pattern": {"(": 1}}, "alpha_pattern"),
]  # fmt: skip


@pytest.mark.parametrize("config, named", REFUSED)
def test_other_kinds_are_refused_by_name(folder: Path, config: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named) as caught:
        read_adapter(change(folder, **config))
    assert caught.value.remedy


@pytest.mark.parametrize("config, named", BROKEN)
def test_contradictions_are_refused(folder: Path, config: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelFileError, match=named):
        read_adapter(change(folder, **config))


def test_tensors_that_are_not_a_pair_of_factors(folder: Path) -> None:
    base = "base_model.model."
    cases: list[tuple[type[SixfoldError], str, Any]] = [
        (UnsupportedModelError, "lm_head", {f"{base}lm_head.lora_A.weight": np.ones((8, 64), np.float32)}),
        (UnsupportedModelError, "embed", {f"{base}embed.lora_embedding_A": np.ones((8, 320), np.float32)}),
        (UnsupportedModelError, "magnitude", {f"{base}model.{Q}.lora_magnitude_vector": np.ones(64, np.float32)}),
        (ModelFileError, "two lora_A", {f"{base}{Q}.lora_A.weight": np.ones((8, 64), np.float32)}),
        (ModelFileError, "no lora_B", {f"{base}layers.9.mlp.up_proj.lora_A.weight": np.ones((8, 64), np.float32)}),
        (ModelFileError, "not of rank", {f"{base}model.{Q}.lora_A.weight": np.ones((7, 64), np.float32)}),
        (ModelFileError, "not of rank", {f"{base}model.{Q}.lora_A.weight": np.ones(64, np.float32)}),
        (ModelFileError, "infinite", {f"{base}model.{Q}.lora_A.weight": np.full((8, 64), np.nan, np.float32)}),
        (UnsupportedModelError, "type", {f"{base}model.{Q}.lora_A.weight": np.ones((8, 64), np.int8)}),
    ]  # fmt: skip
    content = (folder / "adapter_model.safetensors").read_bytes()
    for kind, named, tensors in cases:
        (folder / "adapter_model.safetensors").write_bytes(content)
        with pytest.raises(kind, match=named):
            read_adapter(retensor(folder, lambda found, new=tensors: found.update(new)))


def test_pickles_and_missing_files_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelFileError, match="can run code"):
        read_adapter(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ModelFileError, match="no weights"):
        read_adapter(folder)
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_adapter(tmp_path / "nowhere")
    for text in ("", "[]", "{", '{"a": ' * 5000, "\ufffe"):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(ModelFileError):
            read_adapter(folder)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = st.sampled_from(
    ["r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "peft_type", "bias",
     "use_dora", "init_lora_weights", "task_type", "modules_to_save"]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.dictionaries(
        _FIELDS | st.text(max_size=6), _JSON | st.dictionaries(st.text(max_size=6), _JSON), max_size=4
    )
)
def test_any_configuration_is_read_or_refused_with_a_reason(folder: Path, config: dict[str, Any]) -> None:
    path = folder / "adapter_config.json"
    content = path.read_text()
    try:
        file = read_adapter(change(folder, **config))
        assert all(math.isfinite(part.scale) for part in file.parts.values())
    except (ModelFileError, UnsupportedModelError) as error:
        assert error.cause and error.remedy
    finally:
        path.write_text(content)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_still_finite(folder: Path, data: st.DataObject) -> None:
    path = folder / "adapter_model.safetensors"
    content = path.read_bytes()
    damaged = bytearray(content[: data.draw(st.integers(0, len(content)))])
    for at in data.draw(st.lists(st.integers(0, 2000), max_size=3)):
        if at < len(damaged):
            damaged[at] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(damaged))
    try:
        read_adapter(folder)
    except (ModelFileError, UnsupportedModelError):
        pass
    finally:
        path.write_bytes(content)
