"""The GGUF file format, versions 2 and 3, little-endian: metadata and tensors, every length checked before it is used.

Owns: the reader. Must not know: what keys and tensors mean, except ``general.alignment`` and ``split.count``.
The format is that of ggml's ``docs/gguf.md``::

    magic "GGUF" | version u32 | tensor count u64 | key count u64
    key count    x  string key | type u32 | value
    tensor count x  string name | dimension count u32 | dimensions u64, innermost first | type u32 | offset u64
    padding to the alignment
    tensor data, each at its offset from here

Strings are a u64 length and bytes. Keys and tensor names must be UTF-8. String *values* are decoded with
``surrogateescape``, because some vocabularies hold tokens that are not UTF-8:
``text.encode("utf-8", "surrogateescape")`` gives the file's bytes back.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from sixfold.errors import ModelFileError, UnsupportedModelError
from sixfold.weights.mapped_file import MappedFile
from sixfold.weights.tensor import Tensor, row_bytes

# Far above any real model, low enough that a lie costs neither much memory nor much time
MAX_HEADER = 1 << 27  # bytes of metadata and tensor names
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_ARRAY = 1 << 22  # elements of a metadata array
MAX_NESTED = 1 << 14  # arrays within arrays in a file
MAX_DEPTH = 4  # of arrays within arrays
MAX_NAME = 1 << 16  # bytes of a key or tensor name
MAX_DIMENSIONS = 4

STRING, BOOL, ARRAY = 8, 7, 9
SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "|b1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 30: "BF16",
}  # fmt: skip
OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
    39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from


@dataclass(frozen=True)
class _Entry:
    """What the file says about a tensor: not yet held against where its data is."""

    name: str
    type: str
    shape: tuple[int, ...]
    rows: int
    row_bytes: int
    offset: int

    @property
    def size(self) -> int:
        return self.rows * self.row_bytes


def read_gguf(file: MappedFile) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and the tensors of a GGUF file.

    Numeric arrays become numpy arrays, other arrays lists. Raises :class:`ModelFileError` for anything that is not
    as the format says, and :class:`UnsupportedModelError` for a shard or a tensor type that we do not run.
    """
    reader = _Reader(file)
    tensor_count, key_count = _header(reader)
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = reader.name("a metadata key")
        if key in metadata:
            reader.fail(f"the key {_quote(key)} appears twice")
        metadata[key] = reader.value(reader.u32(f"the type of {_quote(key)}"), f"the value of {_quote(key)}")
    _refuse_shard(file, metadata)
    alignment = _alignment(reader, metadata)
    entries: dict[str, _Entry] = {}
    for _ in range(tensor_count):
        entry = _entry(reader, alignment)
        if entry.name in entries:
            reader.fail(f"the tensor {_quote(entry.name)} appears twice")
        entries[entry.name] = entry
    start = -(-reader.position // alignment) * alignment
    _check_places(reader, entries.values(), start)
    return metadata, {name: _tensor(file, entry, start) for name, entry in entries.items()}


class _Reader:
    """A position in the file that never moves past the end. ``what`` names what is being read, for the error."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.bytes = file.bytes
        self.position = 0
        self.end = min(file.size, MAX_HEADER)
        self.nested = 0  # arrays within arrays so far

    def fail(self, cause: str, remedy: str = "Download it again") -> NoReturn:
        raise ModelFileError(f"{self.file.path} is not a sound GGUF file", cause=cause, remedy=remedy)

    def take(self, size: int, what: str) -> int:
        """Moves over ``size`` bytes and returns where they begin."""
        start = self.position
        if size > self.end - start:
            self.beyond(start, size, what)
        self.position = start + size
        return start

    def beyond(self, start: int, size: int, what: str) -> NoReturn:
        if self.end < self.file.size:
            self.fail(f"{what} lies beyond the first {MAX_HEADER} bytes, which is all that metadata may take")
        self.fail(f"{what} needs {size} bytes at {start}, but the file has {self.file.size}: it is cut off or damaged")

    def u32(self, what: str) -> int:
        at = self.take(4, what)
        return int(_U32(self.bytes, at)[0])

    def u64(self, what: str) -> int:
        at = self.take(8, what)
        return int(_U64(self.bytes, at)[0])

    def name(self, what: str) -> str:
        size = self.u64(f"the length of {what}")
        if not 0 < size <= MAX_NAME:
            self.fail(f"{what} has a length of {size}, allowed are 1 to {MAX_NAME}")
        at = self.take(size, what)
        try:
            return self.bytes[at : at + size].decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} at byte {at} is not valid UTF-8")

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind == STRING:
            return self.strings(1, what)[0]
        if kind == ARRAY:
            return self.array(what, depth + 1)
        if kind not in SCALARS:
            self.fail(f"{what} has the unknown type {kind}")
        return self.numbers(kind, 1, what)[0].item()

    def numbers(self, kind: int, count: int, what: str) -> np.ndarray[Any, np.dtype[Any]]:
        dtype = np.dtype(SCALARS[kind])
        at = self.take(count * dtype.itemsize, what)
        # a copy: metadata outlives the mapping
        values = np.frombuffer(self.bytes, np.uint8 if kind == BOOL else dtype, count, at).copy()
        if kind == BOOL:
            if count and values.max() > 1:
                self.fail(f"{what} is neither true nor false")
            return values.view(np.bool_)
        return values

    def strings(self, count: int, what: str) -> list[str]:
        # A vocabulary has hundreds of thousands of these: one tight loop, no calls into self
        data, position, end, u64 = self.bytes, self.position, self.end, _U64
        result: list[str] = []
        append = result.append
        for _ in range(count):
            start = position + 8
            if start > end:
                self.beyond(position, 8, f"the length of a string in {what}")
            position = start + u64(data, position)[0]
            if position > end:
                self.beyond(start, position - start, f"a string in {what}")
            append(data[start:position].decode("utf-8", "surrogateescape"))
        self.position = position
        return result

    def array(self, what: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            self.fail(f"{what} nests arrays more than {MAX_DEPTH} deep")
        self.nested += depth > 1
        if self.nested > MAX_NESTED:
            self.fail(f"it holds more than {MAX_NESTED} arrays within arrays")
        kind = self.u32(f"the element type of {what}")
        count = self.u64(f"the element count of {what}")
        if kind not in SCALARS and kind not in (STRING, ARRAY):
            self.fail(f"{what} is an array of the unknown type {kind}")
        smallest = {STRING: 8, ARRAY: 12}.get(kind) or np.dtype(SCALARS[kind]).itemsize
        if count > MAX_ARRAY or count * smallest > self.end - self.position:
            self.fail(f"{what} claims {count} elements, more than the file can hold or any model needs")
        if kind == STRING:
            return self.strings(count, what)
        if kind == ARRAY:
            return [self.array(what, depth + 1) for _ in range(count)]
        return self.numbers(kind, count, what)


def _header(reader: _Reader) -> tuple[int, int]:
    """Checks magic and version, and returns the counts of tensors and keys."""
    reader.take(4, "the magic number")
    magic = reader.bytes[:4]
    if magic != b"GGUF":
        remedy = "Give the path of a GGUF file"
        if reader.file.path.suffix == ".safetensors":
            remedy = "For safetensors give the directory that holds it with its config.json"
        reader.fail(f"it begins with {magic!r} where 'GGUF' should be", remedy)
    version = reader.u32("the version")
    if version not in (2, 3):
        if version & 0xFFFF == 0:
            reader.fail("it is big-endian", "Get the little-endian file, or convert it with gguf-convert-endian")
        reader.fail(
            f"its version is {version}; 2 and 3 can be read",
            "Convert the model again with a current llama.cpp converter",
        )
    tensor_count, key_count = reader.u64("the tensor count"), reader.u64("the key count")
    left = reader.end - reader.position
    # the least a key takes: 8 + 1 (name) + 4 (type) + 1; a tensor: 8 + 1 (name) + 4 + 8 (dimension) + 4 (type) + 8
    for count, most, smallest, what in (
        (key_count, MAX_KEYS, 14, "metadata keys"),
        (tensor_count, MAX_TENSORS, 33, "tensors"),
    ):
        if count > most or count * smallest > left:
            reader.fail(f"it claims {count} {what}, more than its {reader.file.size} bytes can hold or any model needs")
    return tensor_count, key_count


def _alignment(reader: _Reader, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        reader.fail(f"general.alignment is {_quote(alignment)}, not a power of two")
    return alignment


def _refuse_shard(file: MappedFile, metadata: dict[str, Any]) -> None:
    count = metadata.get("split.count", 1)
    if type(count) is int and count > 1:
        raise UnsupportedModelError(
            f"{file.path} is one of {count} parts of a split GGUF file", cause="split files are not read directly",
            remedy="Join them first: llama-gguf-split --merge FIRST-PART.gguf whole.gguf",
        )  # fmt: skip


def _entry(reader: _Reader, alignment: int) -> _Entry:
    name = reader.name("a tensor name")
    what = f"the tensor {_quote(name)}"
    dimensions = reader.u32(f"the dimension count of {what}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        reader.fail(f"{what} has {dimensions} dimensions, allowed are 1 to {MAX_DIMENSIONS}")
    shape = tuple(reader.u64(f"a dimension of {what}") for _ in range(dimensions))[::-1]
    kind, offset = reader.u32(f"the type of {what}"), reader.u64(f"the offset of {what}")
    if 0 in shape:
        reader.fail(f"{what} has a dimension of zero: {shape}")
    if kind not in TYPES:
        raise UnsupportedModelError(
            f"The tensor {_quote(name)} of {reader.file.path} has the type {OTHER_TYPES.get(kind, f'number {kind}')}",
            cause=f"the types that can be run are {', '.join(TYPES.values())}",
            remedy="Get the model in one of them, for example Q4_K_M or Q8_0",
        )
    size = row_bytes(TYPES[kind], shape[-1])
    if size is None:
        reader.fail(f"{what} has rows of {shape[-1]} values, which is no multiple of the block size of {TYPES[kind]}")
    rows = math.prod(shape[:-1])
    if rows * size > reader.file.size:  # also where the product would overflow 64 bits
        reader.fail(f"{what} of shape {shape} needs {rows * size} bytes, more than the file has")
    if offset % alignment:
        reader.fail(f"{what} begins at offset {offset}, which is no multiple of the alignment {alignment}")
    return _Entry(name, TYPES[kind], shape, rows, size, offset)


def _check_places(reader: _Reader, entries: Iterable[_Entry], start: int) -> None:
    """Every tensor lies within the file and none overlaps another. Data begins at ``start``."""
    before = None
    for entry in sorted(entries, key=lambda entry: entry.offset):
        what = f"the tensor {_quote(entry.name)}"
        if before is not None and entry.offset < before.offset + before.size:
            reader.fail(f"{what} overlaps the tensor {_quote(before.name)}")
        if start + entry.offset + entry.size > reader.file.size:
            reader.fail(
                f"{what} ends at byte {start + entry.offset + entry.size}, "
                f"but the file has {reader.file.size}: it is cut off or damaged"
            )
        before = entry


def _tensor(file: MappedFile, entry: _Entry, start: int) -> Tensor:
    data = np.frombuffer(file.bytes, np.uint8, entry.size, start + entry.offset)
    return Tensor(entry.name, entry.type, entry.shape, data.reshape(entry.rows, entry.row_bytes))


def _quote(value: object) -> str:
    """A name from the file, fit for a message: no control characters, not long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:90]}...{text[-1]}"
