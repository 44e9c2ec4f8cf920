"""The GGUF reader: what real writers write, each lie a file can tell, and random damage."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sixfold.errors import ModelFileError, SixfoldError, UnsupportedModelError
from sixfold.weights.gguf import MAX_DEPTH, MAX_NESTED, TYPES, read_gguf
from sixfold.weights.mapped_file import MappedFile
from sixfold.weights.tensor import Tensor, check_finite
from tests.gguf_files import (
    ARRAY,
    BOOL,
    HALVES,
    STRING,
    U8,
    U32,
    U64,
    RawTensor,
    array,
    build,
    pair,
    random_rows,
    string,
)  # fmt: skip

MANY = 1 << 62


def read(path: Path, content: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = path / "model.gguf"
    path.write_bytes(content)
    return read_gguf(MappedFile(path))


def write_with_library(path: Path, kinds: list[str]) -> dict[str, np.ndarray]:
    """A file of the ``gguf`` package with one tensor a type; returns each tensor's bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_int64("x.negative", -(1 << 40))
    writer.add_float64("x.double", 0.1)
    writer.add_string("tokenizer.chat_template", "{{ 'höflich' }}")
    writer.add_token_list(["a", "é", "", "▁x" * 50])
    writer.add_token_scores([0.5, -1.0, 0.0, 2.0])
    writer.add_array("x.flags", [True, False, True])
    data = {kind: random_rows(kind, 3, 512) for kind in kinds}
    for kind, rows in data.items():
        writer.add_tensor(f"{kind}.weight", rows, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.add_tensor("norm", np.arange(7, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return data


@pytest.mark.parametrize("version", [2, 3])
def test_reads_what_the_library_writes(tmp_path: Path, version: int) -> None:
    path = tmp_path / "model.gguf"
    data = write_with_library(path, list(TYPES.values()))
    content = bytearray(path.read_bytes())
    content[4:8] = struct.pack("<I", version)  # the layouts of 2 and 3 are the same
    metadata, tensors = read(tmp_path, bytes(content))
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 2
    assert metadata["llama.rope.freq_base"] == 10000.0
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["x.negative"] == -(1 << 40)
    assert metadata["x.double"] == 0.1
    assert metadata["tokenizer.chat_template"] == "{{ 'höflich' }}"
    assert metadata["tokenizer.ggml.tokens"] == ["a", "é", "", "▁x" * 50]
    assert metadata["tokenizer.ggml.scores"].tolist() == [0.5, -1.0, 0.0, 2.0]
    assert metadata["x.flags"].tolist() == [True, False, True]
    assert list(tensors) == [*(f"{kind}.weight" for kind in data), "norm"]
    for kind, rows in data.items():
        tensor = tensors[f"{kind}.weight"]
        assert (tensor.type, tensor.shape) == (kind, (3, 512))
        np.testing.assert_array_equal(tensor.data, rows)
        assert not tensor.data.flags.writeable
    assert tensors["norm"].shape == (7,)
    np.testing.assert_array_equal(tensors["norm"].dequantize(), np.arange(7))


def test_shapes_turn_round_and_more_dimensions_are_rows(tmp_path: Path) -> None:
    _, tensors = read(tmp_path, build([RawTensor(dims=(4, 3, 2), data=bytes(96))]))
    assert tensors["a"].shape == (2, 3, 4)
    assert tensors["a"].data.shape == (6, 16)


def test_alignment_of_the_file_is_obeyed(tmp_path: Path) -> None:
    data = np.arange(32, dtype="<f4")
    pairs = [pair("general.alignment", U32, struct.pack("<I", 256))]
    _, tensors = read(tmp_path, build([RawTensor(data=data.tobytes())], pairs, alignment=256))
    np.testing.assert_array_equal(tensors["a"].dequantize(), data)


def test_gaps_between_tensors_and_bytes_at_the_end_do_no_harm(tmp_path: Path) -> None:
    second = RawTensor("b", data=np.ones(32, "<f4").tobytes(), offset=256)
    content = build([RawTensor(data=bytes(256), dims=(32,)), second]) + b"tail"
    _, tensors = read(tmp_path, content)
    assert tensors["b"].dequantize().sum() == 32


def test_strings_that_are_not_utf8_keep_their_bytes(tmp_path: Path) -> None:
    raw = [b"\xff\xfe", b"ok", b"\xed\xa0\x80", "é".encode()]
    metadata, _ = read(tmp_path, build(pairs=[pair("t", ARRAY, array(STRING, [string(text) for text in raw]))]))
    assert metadata["t"][1] == "ok"
    assert [text.encode("utf-8", "surrogateescape") for text in metadata["t"]] == raw


def test_nested_arrays_are_read(tmp_path: Path) -> None:
    inner = [array(U8, [b"\1", b"\2"]), array(STRING, [string("x")])]
    metadata, _ = read(tmp_path, build(pairs=[pair("n", ARRAY, array(ARRAY, inner))]))
    assert [list(element) for element in metadata["n"]] == [[1, 2], ["x"]]


def test_metadata_outlives_the_mapping(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(build([], [pair("n", ARRAY, array(U8, [b"\1", b"\2"]))]))
    file = MappedFile(path)
    metadata, _ = read_gguf(file)
    file.close()
    assert file.bytes.closed
    assert metadata["n"].tolist() == [1, 2]


def test_a_large_vocabulary_is_read_quickly(tmp_path: Path) -> None:
    tokens = b"".join(string(f"token{i}") for i in range(262_144))
    content = build(pairs=[pair("tokens", ARRAY, struct.pack("<IQ", STRING, 262_144) + tokens)])
    start = time.perf_counter()
    metadata, _ = read(tmp_path, content)
    assert time.perf_counter() - start < 1.5  # about 0.1 s by itself; the rest is for a busy machine
    assert metadata["tokens"][-1] == "token262143"


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", ARRAY, 1) * (depth - 1) + array(U8, [b"\1"])


LIES = {
    "magic": (build(magic=b"GGML"), "begins with b'GGML'"),
    "version 1": (build(version=1), "version is 1; 2 and 3 can be read"),
    "version 4": (build(version=4), "version is 4; 2 and 3 can be read"),
    "version 0": (build(version=0), "big-endian|version is 0"),
    "big-endian": (build(version=3 << 24), "big-endian"),
    "header only": (build()[:20], "tensor count|key count"),
    "three bytes": (b"GGU", "magic"),
    "no keys though promised": (build(key_count=3), "cut off|length of|more than"),
    "absurd tensor count": (build(tensor_count=MANY), "claims 4611686018427387904 tensors"),
    "absurd key count": (build(key_count=MANY), "claims 4611686018427387904 metadata keys"),
    "all ones counts": (build(key_count=2**64 - 1, tensor_count=2**64 - 1), "claims"),
    "absurd array": (build(pairs=[pair("x", ARRAY, array(U8, [], MANY))]), "claims 4611686018427387904 elements"),
    "absurd string array": (build(pairs=[pair("x", ARRAY, array(STRING, [], 1 << 21))]), "claims 2097152 elements"),
    "absurd nested array": (build(pairs=[pair("x", ARRAY, array(ARRAY, [], 1 << 21))]), "claims 2097152 elements"),
    "array of nothing known": (build(pairs=[pair("x", ARRAY, array(13, [b"\0" * 9]))]), "array of the unknown type 13"),
    "value of no known type": (build(pairs=[pair("x", 77, bytes(8))]), "unknown type 77"),
    "array too deep": (build(pairs=[pair("x", ARRAY, nested(MAX_DEPTH + 1))]), "more than 4 deep"),
    "arrays very deep": (build(pairs=[pair("x", ARRAY, nested(100_000))]), "more than 4 deep"),
    "too many arrays in arrays": (
        build(pairs=[pair("x", ARRAY, array(ARRAY, [array(U8, [])] * (MAX_NESTED + 1)))]), "arrays within arrays",
    ),
    "string beyond the file": (build(pairs=[pair("x", STRING, struct.pack("<Q", MANY))]), "cut off or damaged"),
    "array string beyond the file": (
        build(pairs=[pair("x", ARRAY, array(STRING, [struct.pack("<Q", 2**64 - 1)]))]), "a string in the value of 'x'",
    ),
    "array of strings cut off": (
        build([], [pair("x", ARRAY, array(STRING, [string(b"y" * 60)], 2))]).rstrip(b"\0"),
        "string in the value of 'x'",
    ),
    "boolean of 2": (build(pairs=[pair("x", BOOL, b"\2")]), "neither true nor false"),
    "key beyond the file": (build(key_count=2, tensors=[], tensor_count=0)[:-8] + bytes([255] * 20), "length of"),
    "key of nothing": (build(pairs=[pair("", U8, b"\0")]), "length of 0"),
    "key too long": (build(pairs=[pair("k" * 70_000, U8, b"\0")]), "length of 70000"),
    "key not UTF-8": (build(pairs=[pair(b"\xff\xfe", U8, b"\0")]), "not valid UTF-8"),
    "key twice": (build(pairs=[pair("x", U8, b"\0")] * 2), "'x' appears twice"),
    "alignment 0": (build(pairs=[pair("general.alignment", U32, struct.pack("<I", 0))]), "not a power of two"),
    "alignment 48": (build(pairs=[pair("general.alignment", U32, struct.pack("<I", 48))]), "is 48, not a power of two"),
    "alignment huge": (build(pairs=[pair("general.alignment", U64, struct.pack("<Q", 1 << 63))]), "the file has"),
    "alignment a word": (build(pairs=[pair("general.alignment", STRING, string("32"))]), "is '32', not a power of two"),
    "alignment true": (build(pairs=[pair("general.alignment", BOOL, b"\1")]), "is True, not a power of two"),
    "tensor name not UTF-8": (build([RawTensor(b"\xc3(")]), "not valid UTF-8"),
    "tensor name empty": (build([RawTensor("")]), "length of 0"),
    "tensor twice": (build([RawTensor(), RawTensor()]), "'a' appears twice"),
    "no dimensions": (build([RawTensor(dims=())]), "has 0 dimensions"),
    "five dimensions": (build([RawTensor(dims=(1, 1, 1, 1, 32))]), "has 5 dimensions"),
    "absurd dimension count": (build([RawTensor(dim_count=2**32 - 1)]), "has 4294967295 dimensions"),
    "zero dimension": (build([RawTensor(dims=(32, 0))]), "dimension of zero"),
    "zero columns": (build([RawTensor(dims=(0, 32))]), "dimension of zero"),
    "product overflows": (build([RawTensor(dims=(1 << 32, 1 << 32, 1 << 32))]), "more than the file has"),
    "product overflows to the right size": (build([RawTensor(dims=((1 << 63) + 16, 2))]), "more than the file has"),
    "columns not whole blocks": (build([RawTensor(dims=(33,), kind=2)]), "33 values, .* block size of Q4_0"),
    "columns not whole super-blocks": (build([RawTensor(dims=(128, 2), kind=12)]), "128 values, .* of Q4_K"),
    "offset not aligned": (build([RawTensor(offset=4), RawTensor("b")]), "offset 4, .* alignment 32"),
    "offset beyond the file": (build([RawTensor(offset=1 << 20)]), "cut off or damaged"),
    "offset wraps round": (build([RawTensor(offset=2**64 - 32)]), "cut off or damaged"),
    "overlap": (build([RawTensor(), RawTensor("b", offset=96)]), "'b' overlaps the tensor 'a'"),
    "same place": (build([RawTensor(), RawTensor("b", offset=0)]), "overlaps the tensor"),
    "data cut off": (build()[:-1], "cut off or damaged"),
    "no data": (build()[:-128], "more than the file has|cut off or damaged"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "cause"), LIES.values(), ids=LIES.keys())
def test_each_lie_is_refused_with_its_cause(tmp_path: Path, content: bytes, cause: str) -> None:
    with pytest.raises(ModelFileError, match=cause) as caught:
        read(tmp_path, content)
    assert caught.value.cause
    assert caught.value.remedy
    assert "model.gguf" in caught.value.what
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("kind", "name"), [(16, "IQ2_XXS"), (34, "TQ1_0"), (28, "F64"), (4, "number 4"), (99, "number 99")]
)
def test_a_type_we_do_not_run_is_named(tmp_path: Path, kind: int, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"'blk.7.x' of .* has the type {name}.*Q4_K.*Get the model"):
        read(tmp_path, build([RawTensor("blk.7.x", kind=kind)]))


def test_a_shard_says_how_to_join_it(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"one of 3 parts.*llama-gguf-split --merge"):
        read(tmp_path, build(pairs=[pair("split.count", 2, struct.pack("<H", 3))]))
    read(tmp_path, build(pairs=[pair("split.count", 2, struct.pack("<H", 1))]))


def test_a_safetensors_file_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(ModelFileError, match="give the directory"):
        read_gguf(MappedFile(path))


def test_names_in_messages_are_harmless(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        read(tmp_path, build(pairs=[pair("\x1b[2J" + "k" * 60_000, U8, b"\0")] * 2))
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("kind", [U8, STRING, ARRAY])
def test_a_vast_sparse_file_costs_neither_time_nor_memory(tmp_path: Path, kind: int) -> None:
    """A terabyte of zeros behind a header whose claims would fit into it."""
    path = tmp_path / "model.gguf"
    path.write_bytes(build([], [pair("x", ARRAY, array(kind, [], 1 << 35))]))
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    start = time.perf_counter()
    with pytest.raises(ModelFileError, match="claims 34359738368 elements"):
        read_gguf(MappedFile(path))
    assert time.perf_counter() - start < 1


def small_file() -> bytes:
    """Every kind of thing a file can hold, in a few hundred bytes."""
    pairs = [
        pair("s", STRING, string("text")), pair("b", BOOL, b"\1"), pair("u", U32, struct.pack("<I", 7)),
        pair("t", ARRAY, array(STRING, [string("a"), string("bc")])), pair("n", ARRAY, nested(2)),
        pair("f", ARRAY, array(6, [struct.pack("<f", 1.5)] * 3)),
    ]  # fmt: skip
    tensors = [RawTensor("q", (64, 2), 2, random_rows("Q4_0", 2, 64).tobytes()), RawTensor("n", (8,), 0, bytes(32))]
    return build(tensors, pairs)


SMALL = small_file()


@settings(max_examples=400, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=6),
    length=st.one_of(st.just(len(SMALL)), st.integers(1, len(SMALL))),
)
def test_damage_is_refused_or_does_no_harm(tmp_path: Path, flips: list[tuple[int, int]], length: int) -> None:
    content = bytearray(SMALL)
    for at, value in flips:
        content[at] = value
    try:
        _, tensors = read(tmp_path, bytes(content[:length]))
        for tensor in tensors.values():
            check_finite(tensor)
            assert tensor.dequantize().shape == tensor.shape
    except SixfoldError as error:
        assert error.cause
        assert error.remedy


@settings(max_examples=200, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(max_size=200), at=st.sampled_from([4, 8, 16, 24, 60, len(SMALL) - 200]))
def test_noise_behind_a_sound_beginning(tmp_path: Path, tail: bytes, at: int) -> None:
    try:
        read(tmp_path, SMALL[:at] + tail)
    except SixfoldError as error:
        assert error.remedy


@pytest.mark.parametrize("length", range(1, len(SMALL), 7))
def test_every_truncation_of_a_small_file_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ModelFileError):
        read(tmp_path, SMALL[:length])


def test_the_builders_know_all_types() -> None:
    assert {*HALVES, "F32", "F16", "BF16"} == set(TYPES.values())
