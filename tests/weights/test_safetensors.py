"""The safetensors reader and the Hugging Face directory: what the library writes, each lie, and random damage."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from sixfold.errors import ModelFileError, SixfoldError, UnsupportedModelError
from sixfold.weights.mapped_file import MappedFile
from sixfold.weights.safetensors import INDEX, SINGLE, read_config, read_safetensors, read_weights, weight_files
from sixfold.weights.tensor import Tensor, check_finite

A = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}
B = {"dtype": "BF16", "shape": [8], "data_offsets": [32, 48]}


def pack(header: Any, data: bytes = bytes(48), size: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw + data


def read(directory: Path, content: bytes) -> dict[str, Tensor]:
    path = directory / SINGLE
    path.write_bytes(content)
    return read_safetensors(MappedFile(path))


def load(directory: Path) -> dict[str, Tensor]:
    names, places = weight_files(directory)
    return read_weights([MappedFile(name) for name in names], places)


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "model.embed": random.normal(size=(6, 5)).astype(np.float32),
        "model.norm": random.normal(size=7).astype(np.float16),
        "model.conv": random.normal(size=(2, 3, 4)).astype(np.float32),
        "model.scalar": np.array(2.5, np.float32),
    }
    save_file(arrays, tmp_path / SINGLE, metadata={"format": "pt"})
    tensors = load(tmp_path)
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert tensors[name].shape == array.shape
        np.testing.assert_array_equal(tensors[name].dequantize(), array.astype(np.float32))
        assert not tensors[name].data.flags.writeable
    assert tensors["model.conv"].data.shape == (6, 16)
    assert tensors["model.norm"].type == "F16"


def test_bfloat16_is_kept_as_raw_bytes(tmp_path: Path) -> None:
    raw = np.array([[0x3F80, 0xC000], [0x0001, 0x7F7F]], "<u2")
    header = {"w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}
    tensor = read(tmp_path, pack(header, raw.tobytes()))["w"]
    assert tensor.type == "BF16"
    np.testing.assert_array_equal(tensor.data, raw.view(np.uint8))
    np.testing.assert_array_equal(tensor.dequantize().view(np.uint32), raw.astype(np.uint32) << 16)


def test_data_at_odd_offsets_is_read(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}'
    header += b" " * (1 - len(header) % 2)
    tensor = read(tmp_path, pack(header, np.float32(1.5).tobytes()))["w"]
    check_finite(tensor)
    assert tensor.dequantize() == [[1.5]]


def test_an_empty_header_is_an_empty_model(tmp_path: Path) -> None:
    assert read(tmp_path, pack({}, b"")) == {}


def change(**fields: Any) -> bytes:
    return pack({"a": {**A, **fields}, "b": B})


LIES = {
    "short": (b"\1\0\0", "header claims"),
    "header beyond the file": (pack({"a": A}, size=1 << 20), "header claims 1048576 bytes"),
    "absurd header": (pack({"a": A}, size=2**64 - 1), "header claims 18446744073709551615 bytes"),
    "not JSON": (pack(b"{'a': 1}"), "JSON cannot be read"),
    "not UTF-8": (pack(b'{"\xff": 1}'), "JSON cannot be read"),
    "not an object": (pack([]), "not an object"),
    "deep": (pack(b"[" * 200_000), "JSON cannot be read"),
    "number of many digits": (pack(b'{"a": ' + b"9" * 10_000 + b"}"), "JSON cannot be read"),
    "name twice": (pack(f'{{"a": {json.dumps(A)}, "a": {json.dumps(B)}}}'.encode()), "name 'a' appears twice"),
    "name empty": (pack({"": A}, bytes(32)), "not described"),
    "entry is a list": (pack({"a": []}), "not described"),
    "entry lacks a field": (pack({"a": {"dtype": "F32", "shape": [2, 4]}}), "not described"),
    "entry has a field more": (change(extra=1), "not described"),
    "shape is a word": (change(shape="2x4"), "impossible shape '2x4'"),
    "shape negative": (change(shape=[-2, -4]), "impossible shape"),
    "shape of fractions": (change(shape=[2.0, 4.0]), "impossible shape"),
    "shape of booleans": (change(shape=[True, 8]), "impossible shape"),
    "shape of many": (change(shape=[1] * 9), "impossible shape"),
    "shape zero": (change(shape=[0, 4]), "dimension of zero"),
    "shape too big": (change(shape=[1 << 62, 1 << 62]), "cannot take 32 bytes"),
    "shape too small": (change(shape=[2, 3]), "cannot take 32 bytes"),
    "offsets swapped": (change(data_offsets=[32, 0]), "impossible data_offsets"),
    "offsets three": (change(data_offsets=[0, 16, 32]), "impossible data_offsets"),
    "offsets absurd": (change(data_offsets=[0, 1 << 80]), "impossible data_offsets"),
    "overlap": (pack({"a": A, "b": {**B, "data_offsets": [24, 40]}}), "'b' overlaps"),
    "gap": (pack({"a": A, "b": {**B, "data_offsets": [34, 50]}}, bytes(50)), "2 bytes before the tensor 'b'"),
    "cut off": (pack({"a": A, "b": B}, bytes(47)), "'b' ends at byte .* cut off"),
    "bytes left over": (pack({"a": A, "b": B}, bytes(49)), "1 bytes after its last tensor"),
}


@pytest.mark.parametrize(("content", "cause"), LIES.values(), ids=LIES.keys())
def test_each_lie_is_refused_with_its_cause(tmp_path: Path, content: bytes, cause: str) -> None:
    with pytest.raises(ModelFileError, match=cause) as caught:
        read(tmp_path, content)
    assert caught.value.remedy
    assert SINGLE in caught.value.what
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("kind", ["I32", "F8_E4M3", "F64", "?", 7, None])
def test_a_type_we_do_not_run_is_named(tmp_path: Path, kind: object) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"The tensor 'a' of .* has the type .*{kind}".replace("?", r"\?")):
        read(tmp_path, change(dtype=kind))


def write_shards(directory: Path) -> dict[str, Any]:
    for number, name in enumerate(("a", "b")):
        save_file({name: np.full((2, 2), number, np.float32)}, directory / f"model-{number}.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-0.safetensors", "b": "model-1.safetensors"}}
    (directory / INDEX).write_text(json.dumps(index))
    return index


def test_shards_are_read_as_one_model(tmp_path: Path) -> None:
    write_shards(tmp_path)
    tensors = load(tmp_path)
    assert tensors["a"].dequantize().tolist() == [[0, 0], [0, 0]]
    assert tensors["b"].dequantize().tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", "", "a\\b", "a\0b", "\ud800", 7, None])
def test_an_index_must_not_reach_out_of_its_directory(tmp_path: Path, name: object) -> None:
    index = write_shards(tmp_path)
    index["weight_map"]["a"] = name
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelFileError):
        load(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "cause"),
    [
        (None, "no weight_map"),
        ({}, "no weight_map"),
        (["a"], "no weight_map"),
        ({"a": "model-0.safetensors", "z": "model-0.safetensors"}, "'z' in model-0.safetensors, which does not"),
        ({"a": "model-1.safetensors"}, "'a' in model-1.safetensors, which does not"),
        ({"a": "model-9.safetensors"}, "No such file"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, weight_map: object, cause: str) -> None:
    write_shards(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelFileError, match=cause):
        load(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path)
    same = np.zeros((2, 2), np.float32)
    save_file({"a": same, "b": same}, tmp_path / "model-1.safetensors")
    with pytest.raises(ModelFileError, match=r"'a' is also in model-0\.safetensors"):
        load(tmp_path)


def test_missing_weights_say_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"neither model\.safetensors nor .* no weights to read"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ModelFileError, match=r"pickled weights are never loaded.*Convert them"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a": 1, "a": 2}', "[" * 100_000])
def test_a_broken_config_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelFileError, match=r"config\.json") as caught:
        read_config(tmp_path)
    assert caught.value.remedy


def test_a_multimodal_gemma3_config_is_flattened(tmp_path: Path) -> None:
    config = {
        "model_type": "gemma3",
        "eos_token_id": [1, 106],
        "vision_config": {"hidden_size": 9},
        "text_config": {"model_type": "gemma3_text", "hidden_size": 640},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path) == {"model_type": "gemma3_text", "eos_token_id": [1, 106], "hidden_size": 640}
    (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": 3}))
    with pytest.raises(ModelFileError, match="text_config is not an object"):
        read_config(tmp_path)


SMALL = pack({"__metadata__": {"format": "pt"}, "a": A, "b": B})


@settings(max_examples=400, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=4),
    length=st.one_of(st.just(len(SMALL)), st.integers(1, len(SMALL))),
)
def test_damage_is_refused_or_does_no_harm(tmp_path: Path, flips: list[tuple[int, int]], length: int) -> None:
    content = bytearray(SMALL)
    for at, value in flips:
        content[at] = value
    try:
        for tensor in read(tmp_path, bytes(content[:length])).values():
            check_finite(tensor)
            assert tensor.dequantize().shape == tensor.shape
    except SixfoldError as error:
        assert error.cause
        assert error.remedy


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "BF16", "I8"]) | JSON, "shape": st.lists(st.integers(-1, 9), max_size=3) | JSON,
    "data_offsets": st.lists(st.integers(0, 60), min_size=2, max_size=2) | JSON,
})  # fmt: skip


@settings(max_examples=150, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRY | JSON) | JSON)
def test_any_header_is_read_or_refused(tmp_path: Path, header: object) -> None:
    try:
        read(tmp_path, pack(header))
    except SixfoldError as error:
        assert error.cause
        assert error.remedy
