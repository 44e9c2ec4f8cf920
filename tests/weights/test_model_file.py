"""Opening a model: which reader, which architecture, which digest; and the digest cache when things change or break."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sixfold.errors import ModelFileError
from sixfold.weights import mapped_file
from sixfold.weights.mapped_file import MappedFile
from sixfold.weights.model_file import open_model
from sixfold.weights.quants import FORMATS
from sixfold.weights.tensor import check_finite, split_blocks
from tests.gguf_files import U32, RawTensor, build, pair

OLD = 1_600_000_000_000_000_000  # ns: long before now


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIXFOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(mapped_file, "RACY_NS", 0)  # files of this test are new and yet may be remembered
    return tmp_path / "home"


def gguf_file(directory: Path, fill: float = 0.0) -> Path:
    path = directory / "model.gguf"
    path.write_bytes(build([RawTensor(data=np.full(32, fill, "<f4").tobytes())]))
    return path


def directory(at: Path, **config: object) -> Path:
    at.mkdir(exist_ok=True)
    (at / "config.json").write_text(json.dumps(config))
    (at / "tokenizer.json").write_text("{}")
    save_file({"model.norm.weight": np.ones(4, np.float32)}, at / "model.safetensors")
    return at


def test_a_gguf_file(tmp_path: Path) -> None:
    path = gguf_file(tmp_path, 2.0)
    with open_model(path) as model:
        assert (model.kind, model.architecture, model.path) == ("gguf", "llama", path)
        assert model.metadata == {"general.architecture": "llama"}
        assert model.tensors["a"].dequantize().tolist() == [2.0] * 32
        assert model.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_directory(tmp_path: Path) -> None:
    with open_model(directory(tmp_path / "m", model_type="qwen3", hidden_size=4)) as model:
        assert (model.kind, model.architecture) == ("safetensors", "qwen3")
        assert model.metadata == {"model_type": "qwen3", "hidden_size": 4}
        assert model.tensors["model.norm.weight"].dequantize().tolist() == [1.0] * 4
        assert len(model.digest) == 64


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"model_type": "mistral"}, "llama"),
        ({"model_type": "qwen2"}, "qwen2"),
        ({"model_type": "gemma3_text"}, "gemma3"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "gemma3"),
        ({"model_type": "gemma3", "text_config": {}}, "gemma3"),
        ({"architectures": ["MistralForCausalLM"]}, "llama"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "qwen3"),
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"model_type": "mamba"}, "mamba"),  # known or not is for sixfold.models to say
    ],
)
def test_architectures_of_directories(tmp_path: Path, config: dict[str, object], architecture: str) -> None:
    assert open_model(directory(tmp_path / "m", **config)).architecture == architecture


@pytest.mark.parametrize("config", [{}, {"model_type": 3}, {"architectures": "x"}, {"architectures": [3]}])
def test_a_directory_without_an_architecture_is_refused(tmp_path: Path, config: dict[str, object]) -> None:
    with pytest.raises(ModelFileError, match="does not say what model it is"):
        open_model(directory(tmp_path / "m", **config))


def test_a_gguf_file_without_an_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(build().replace(b"general.architecture", b"general.architectura"))
    with pytest.raises(ModelFileError, match="does not say what model it is"):
        open_model(path)


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    empty, pipe = tmp_path / "empty.gguf", tmp_path / "pipe.gguf"
    empty.touch()
    os.mkfifo(pipe)
    for path, cause in (
        (tmp_path / "none.gguf", "No such file"), (tmp_path / "a\0b", "null"), (empty, "is empty"),
        (pipe, "not a regular file"), (Path("/dev/zero"), "not a regular file"), (tmp_path, r"config\.json"),
    ):  # fmt: skip
        with pytest.raises(ModelFileError, match=cause) as caught:
            open_model(path)
        assert caught.value.remedy


def test_close_unmaps_and_spares_what_is_still_held(tmp_path: Path) -> None:
    model = open_model(gguf_file(tmp_path, 3.0))
    held = model.tensors["a"]
    model.close()
    assert not model.tensors
    assert held.dequantize().tolist() == [3.0] * 32
    model = open_model(gguf_file(tmp_path))
    model.close()
    assert model.files[0].bytes.closed
    model.close()


def test_the_digest_is_remembered(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gguf_file(tmp_path)
    digest = open_model(path).digest
    assert len(list((home / "digests").iterdir())) == 1
    monkeypatch.setattr(mapped_file, "_write_entry", lambda *_: pytest.fail("hashed again"))
    assert open_model(path).digest == digest


def test_a_changed_file_is_hashed_again(tmp_path: Path) -> None:
    path = gguf_file(tmp_path, 1.0)
    first = open_model(path).digest
    os.utime(path, ns=(OLD, OLD))
    assert open_model(path).digest == first
    time.sleep(0.02)  # so that the change time moves
    other = gguf_file(tmp_path, 2.0)  # same size
    os.utime(other, ns=(OLD, OLD))  # and same modification time, as copying tools keep it
    assert open_model(path).digest == hashlib.sha256(path.read_bytes()).hexdigest() != first


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", "{}", "[" * 100_000, '"x"', "other", "short", "hex", "number", b"\xff\xfe"]
)
def test_a_damaged_cache_entry_is_ignored(tmp_path: Path, home: Path, damage: str | bytes) -> None:
    path = gguf_file(tmp_path)
    digest = open_model(path).digest
    (entry,) = (home / "digests").iterdir()
    sound = json.loads(entry.read_text())
    changes = {
        "other": {"path": "/elsewhere"},
        "short": {"sha256": "ab"},
        "hex": {"sha256": "z" * 64},
        "number": {"sha256": 1},
    }
    if isinstance(damage, str):
        text = json.dumps({**sound, **changes[damage]}) if damage in changes else damage
        damage = text.encode()
    entry.write_bytes(damage)
    assert open_model(path).digest == digest
    assert json.loads(entry.read_text()) == sound  # and mended
    assert len(list((home / "digests").iterdir())) == 1


def test_a_fresh_file_is_not_remembered(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_file, "RACY_NS", 3_600_000_000_000)
    open_model(gguf_file(tmp_path))
    assert not (home / "digests").exists()


def test_a_home_that_cannot_be_written_costs_only_time(tmp_path: Path, home: Path) -> None:
    home.write_text("a file, not a directory")
    path = gguf_file(tmp_path)
    assert open_model(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_digest_of_a_directory_covers_all_that_shapes_results(tmp_path: Path) -> None:
    at = directory(tmp_path / "m", model_type="llama")
    digests = {open_model(at).digest}
    (at / "README.md").write_text("nothing")
    assert {open_model(at).digest} == digests
    for name, content in (("tokenizer.json", "[]"), ("config.json", '{"model_type": "qwen2"}'), ("merges.txt", "a b")):
        (at / name).write_text(content)
        digests.add(open_model(at).digest)
    save_file({"model.norm.weight": np.zeros(4, np.float32)}, at / "model.safetensors")
    digests.add(open_model(at).digest)
    assert len(digests) == 5


def test_mapped_bytes_are_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"content")
    file = MappedFile(path)
    assert (file.size, file.bytes[:]) == (7, b"content")


def test_extra_keys_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(build(pairs=[pair("llama.new_setting", U32, b"\1\0\0\0")]))
    assert open_model(path).metadata["llama.new_setting"] == 1


@pytest.mark.model
def test_the_real_model_opens_quickly_and_is_sound(smollm2_path: Path) -> None:
    open_model(smollm2_path).close()  # hashes
    start = time.perf_counter()
    with open_model(smollm2_path) as model:
        assert time.perf_counter() - start < 1
        assert model.architecture == "llama"
        assert len(model.metadata["tokenizer.ggml.tokens"]) == 49152
        assert len(model.tensors) == 272
        for tensor in model.tensors.values():
            check_finite(tensor)
            if tensor.type in FORMATS:
                assert split_blocks(tensor).q.shape == tensor.shape
