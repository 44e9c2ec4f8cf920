"""A Hugging Face model directory: ``config.json`` and safetensors files, whole or in shards behind an index.

Owns: the safetensors reader and the directory's layout. Must not know: what tensors mean. Nothing here runs code from
a file: pickled weights (``pytorch_model.bin``) are refused.

A safetensors file is a u64 header length, a JSON header, and data::

    {"name": {"dtype": "BF16", "shape": [rows, cols], "data_offsets": [begin, end]}, ..., "__metadata__": {...}}

Offsets count from the end of the header; tensors cover the data without gaps or overlaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from sixfold.errors import ModelFileError, UnsupportedModelError
from sixfold.weights.mapped_file import MappedFile
from sixfold.weights.quants import FLOATS
from sixfold.weights.tensor import Tensor

MAX_HEADER = 1 << 25  # bytes of JSON; the index of the largest open models has 9 MB
MAX_DIMENSIONS = 8
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What shapes the results besides the weights: all of it goes into the digest
COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed ``config.json``; a multimodal Gemma 3's text part comes flattened, as a text model would write it."""
    config = _read_json(MappedFile(directory / "config.json"))
    text = config.get("text_config")
    if config.get("model_type") == "gemma3" and text is not None:
        if not isinstance(text, dict):
            _fail(directory / "config.json", "its text_config is not an object")
        outer = {key: value for key, value in config.items() if key not in ("text_config", "vision_config")}
        config = {**outer, **text}
    return config


def weight_files(directory: Path) -> tuple[list[Path], Mapping[str, str]]:
    """The safetensors files of a model, and for a sharded one the file that its index names for each tensor."""
    if (directory / SINGLE).is_file():
        return [directory / SINGLE], {}
    if not (directory / INDEX).is_file():
        pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt*"))
        raise ModelFileError(
            f"{directory} holds neither {SINGLE} nor {INDEX}",
            cause="pickled weights are never loaded: they can run code" if pickled else "there are no weights to read",
            remedy="Convert them to safetensors" if pickled else "Download the model again, with its safetensors files",
        )
    path = directory / INDEX
    places = _read_json(MappedFile(path)).get("weight_map")
    if not isinstance(places, dict) or not places:
        _fail(path, "it has no weight_map")
    for tensor, name in places.items():
        # a plain file name: an index must not reach out of its directory
        if not isinstance(name, str) or not name or Path(name).name != name or "\\" in name or not name.isprintable():
            _fail(path, f"it places the tensor {_quote(tensor)} in {_quote(name)}, which is not a file name")
    return [directory / name for name in sorted(set(places.values()))], places


def read_weights(files: list[MappedFile], places: Mapping[str, str]) -> dict[str, Tensor]:
    """All tensors of the files, held against the index. Raises as :func:`read_safetensors` does."""
    tensors: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for file in files:
        for name, tensor in read_safetensors(file).items():
            if name in tensors:
                _fail(file.path, f"the tensor {_quote(name)} is also in {origin[name]}")
            tensors[name], origin[name] = tensor, file.path.name
    for name, place in places.items():
        if origin.get(name) != place:
            _fail(
                files[0].path.parent / INDEX, f"it places the tensor {_quote(name)} in {place}, which does not hold it"
            )
    return tensors


def read_safetensors(file: MappedFile) -> dict[str, Tensor]:
    """The tensors of one safetensors file.

    Raises :class:`ModelFileError` for anything that is not as the format says, and :class:`UnsupportedModelError` for
    a type that we do not run.
    """
    size = int.from_bytes(file.bytes[:8], "little")
    if file.size < 8 or size > min(file.size - 8, MAX_HEADER):
        _fail(file.path, f"its header claims {size} bytes, but the file has {file.size}: it is cut off or damaged")
    header = _parse(file.path, file.bytes[8 : 8 + size])
    header.pop("__metadata__", None)
    begin = 8 + size
    tensors: dict[str, Tensor] = {}
    end = 0
    spans = sorted((_span(file.path, name, entry), name) for name, entry in header.items())
    for (first, last), name in spans:
        what = f"the tensor {_quote(name)}"
        if first < end:
            _fail(file.path, f"{what} overlaps the one before it")
        if first > end:
            _fail(file.path, f"there are {first - end} bytes before {what} that belong to no tensor")
        if begin + last > file.size:
            _fail(
                file.path, f"{what} ends at byte {begin + last}, but the file has {file.size}: it is cut off or damaged"
            )
        end = last
        tensors[name] = _tensor(file, name, header[name], begin + first, last - first)
    if begin + end != file.size:
        _fail(file.path, f"it goes on for {file.size - begin - end} bytes after its last tensor")
    return tensors


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Checks the form of a header entry and returns its data offsets."""
    what = f"the tensor {_quote(name)}"
    if not name or not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _fail(path, f"{what} is not described by dtype, shape and data_offsets")
    shape, span = entry["shape"], entry["data_offsets"]
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        _fail(path, f"{what} has the impossible shape {_quote(shape)}")
    if not _sizes(span) or len(span) != 2 or span[0] > span[1]:
        _fail(path, f"{what} has the impossible data_offsets {_quote(span)}")
    return span[0], span[1]


def _tensor(file: MappedFile, name: str, entry: dict[str, Any], start: int, size: int) -> Tensor:
    type, shape = entry["dtype"], tuple(entry["shape"])
    what = f"the tensor {_quote(name)}"
    if not isinstance(type, str) or type not in FLOATS:
        raise UnsupportedModelError(
            f"{what[0].upper()}{what[1:]} of {file.path} has the type {_quote(type)}",
            cause=f"the safetensors types that can be run are {', '.join(FLOATS)}",
            remedy="Get the model in one of them, or as a quantised GGUF file",
        )
    if 0 in shape:
        _fail(file.path, f"{what} has a dimension of zero: {list(shape)}")
    if math.prod(shape) * FLOATS[type] != size:
        _fail(file.path, f"{what} of shape {list(shape)} and type {type} cannot take {size} bytes")
    data = np.frombuffer(file.bytes, np.uint8, size, start)
    return Tensor(name, type, shape, data.reshape(math.prod(shape[:-1]), -1))


def _sizes(value: Any) -> bool:
    """Whether this is a list of sizes: whole numbers that fit 64 bits, and no booleans."""
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _read_json(file: MappedFile) -> dict[str, Any]:
    if file.size > MAX_HEADER:
        _fail(file.path, f"it has {file.size} bytes, more than any such file needs")
    content = file.bytes[:]
    file.close()
    return _parse(file.path, content)


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    """The JSON object that these bytes hold; a key that appears twice is an error, not a choice."""
    try:
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # broken JSON, broken UTF-8, absurd numbers, absurd nesting
        _fail(path, f"its JSON cannot be read: {_shorten(str(error))}")
    if not isinstance(parsed, dict):
        _fail(path, "its JSON is not an object")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {_quote(twice)} appears twice")
    return result


def _fail(path: Path, cause: str) -> NoReturn:
    raise ModelFileError(f"{path} is not a sound file", cause=cause, remedy="Download it again")


def _quote(value: object) -> str:
    return _shorten(repr(value))


def _shorten(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:90]}...{text[-1]}"
