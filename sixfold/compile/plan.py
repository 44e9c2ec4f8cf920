"""The plan file: written once a model, memory-mapped on every later start.

Owns: the file's format (csrc/plan.hpp reads it), the cache and its key. Must not know: graphs of any architecture.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from sixfold import config
from sixfold.compile.formats import Format
from sixfold.compile.lower import ACTIVATIONS, KINDS, Op, lower, rope_name
from sixfold.compile.pack import format_of, pack, packed_bytes, tile_bytes
from sixfold.compile.passes import PASSES, run_passes
from sixfold.errors import PlanError
from sixfold.models.network import Hyperparameters, Network, load_network
from sixfold.weights.model_file import ModelFile

FORMAT_VERSION = 2  # of the file, kPlanVersion in csrc/plan.hpp
COMPILER_VERSION = 5  # raise it with every change to passes, formats or layouts
MAGIC = b"SIXFPLAN"
DATA_OFFSET = 4096
ALIGNMENT = 64
PIECE = 8 << 20  # bytes that are hashed as one

HEADER = np.dtype(
    [("magic", "S8"), ("version", "<u4"), ("header_bytes", "<u4"),
     ("meta_offset", "<u8"), ("meta_bytes", "<u8"), ("matrices_offset", "<u8"), ("matrix_count", "<u8"),
     ("ops_offset", "<u8"), ("op_count", "<u8"), ("data_offset", "<u8"), ("data_bytes", "<u8"),
     ("hidden", "<u4"), ("layers", "<u4"), ("query_heads", "<u4"), ("kv_heads", "<u4"), ("head_size", "<u4"),
     ("intermediate", "<u4"), ("vocabulary", "<u4"), ("context", "<u4"), ("rope_tables", "<u4"), ("reserved", "<u4", 7)]
)  # fmt: skip
MATRIX = np.dtype(
    [("offset", "<u8"), ("bytes", "<u8"), ("rows", "<u4"), ("columns", "<u4"), ("values", "<u4"), ("block", "<u4"),
     ("scale_bytes", "<u4"), ("minimum", "<u4"), ("vector", "<u4"), ("stride", "<u4"),
     ("reserved", "<u4", 2)]
)  # fmt: skip
OP = np.dtype(
    [("kind", "<u4"), ("section", "<u4"), ("matrix", "<i4", 3), ("bias", "<i4", 3), ("norm", "<i4", 2),
     ("layer", "<i4"), ("rope", "<i4"), ("window", "<i4"), ("emit", "<u4"), ("input", "<u4"), ("activation", "<u4"),
     ("epsilon", "<f4"), ("scale", "<f4"), ("reserved", "<u4", 14)]
)  # fmt: skip

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Plan:
    """A plan in memory: the whole file as bytes [n], mapped and shared between processes, and its own description."""

    data: Bytes
    meta: dict[str, Any]

    @property
    def context(self) -> int:
        """Tokens of context the model was trained for."""
        return int(self.meta["sizes"]["context"])

    @property
    def content_digest(self) -> str:
        """Of its operators and packed weights."""
        return str(self.meta["pieces_sha256"])

    @property
    def operators(self) -> list[dict[str, Any]]:
        """The fused operators in order, for ``show --plan``."""
        return list(self.meta["operators"])


def build(model: ModelFile, *, cache: bool = True) -> Plan:
    """The plan of a model, from the cache when it is there and whole, else compiled (and cached).

    Raises UnsupportedModelError or ModelFileError for a model that can not be compiled.
    """
    key = _key(model.digest)
    path = _path(key)
    if cache:
        try:
            return _open(path, key)
        except (OSError, PlanError):
            pass  # absent, torn, damaged or of another version: compiled anew below
    network = load_network(model)
    ops = lower(network, run_passes(network.output))
    folder = path.parent if cache else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".plan-", delete=False) as file:
        temporary = Path(file.name)
        try:
            _write(file.file, network, ops, {"key": key, "model": model.path.name, "digest": model.digest})
            file.flush()
            if cache:
                os.fsync(file.fileno())
                temporary.replace(path)
                return _open(path, key)
            return _open(temporary, key)
        finally:
            temporary.unlink(missing_ok=True)  # the mapping keeps an uncached plan alive


def forget(digest: str) -> None:
    """Deletes the cached plan of a model with this digest, if there is one."""
    _path(_key(digest)).unlink(missing_ok=True)


def _path(key: str) -> Path:
    return config.home() / "plans" / f"{key}.plan"


def _key(digest: str) -> str:
    text = f"{digest} plan {FORMAT_VERSION} compiler {COMPILER_VERSION}"
    return hashlib.sha256(text.encode()).hexdigest()


def _open(path: Path, key: str) -> Plan:
    """Maps a plan and checks that it is the one asked for and as it was written."""
    if path.stat().st_size < DATA_OFFSET:
        raise PlanError(f"{path} is too short", remedy="Delete it")
    data = np.memmap(path, dtype=np.uint8, mode="r")
    header = data[: HEADER.itemsize].view(HEADER)[0]
    begin, end = int(header["meta_offset"]), int(header["meta_offset"]) + int(header["meta_bytes"])
    if header["magic"] != MAGIC or header["version"] != FORMAT_VERSION or end != len(data):
        raise PlanError(f"{path} is not a whole plan of this version", remedy="Delete it")
    try:
        meta = json.loads(bytes(data[begin:end]))
        known, digest = meta["key"], meta["pieces_sha256"]
    except (ValueError, KeyError, TypeError):
        raise PlanError(f"{path} is damaged", remedy="Delete it") from None
    if known != key or digest != _digest(data[:begin].data):
        raise PlanError(f"{path} is damaged or belongs to another model", remedy="Delete it")
    return Plan(np.asarray(data), meta)


def _digest(content: memoryview) -> str:
    """The sha256 of the sha256s of all pieces: several threads take them, as one would need seconds for gigabytes."""
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces)
    return hashlib.sha256(b"".join(digests)).hexdigest()


class _Writer:
    """Writes tensors one after the other, each once, and remembers where they lie."""

    def __init__(self, file: IO[bytes], network: Network) -> None:
        self.file = file
        self.network = network
        self.records: list[np.ndarray[Any, np.dtype[np.void]]] = []
        self.index: dict[str, int] = {}
        self.position = 0

    def matrix(self, name: str) -> int:
        if name not in self.index:
            self._matrices([name])
        return self.index[name]

    def pair(self, first: str, second: str) -> list[int]:
        """Two matrices that are read side by side: if they are alike, their tiles alternate, one stream for both."""
        a, b = self.network.weights[first], self.network.weights[second]
        fresh = first not in self.index and second not in self.index
        if fresh and a.shape == b.shape and format_of(a) == format_of(b):
            self._matrices([first, second])
        return [self.matrix(first), self.matrix(second)]

    def _matrices(self, names: list[str]) -> None:
        weights = [self.network.weights[name] for name in names]
        size = tile_bytes(format_of(weights[0]), weights[0].shape[1])
        begin = self._align()
        for parts in zip(*(pack(weight) for weight in weights), strict=True):
            self._put(np.stack([part.reshape(-1, size) for part in parts], axis=1) if len(parts) > 1 else parts[0])
        for place, (name, weight) in enumerate(zip(names, weights, strict=True)):
            record = _record(weight.shape, format_of(weight), stride=size * len(names))
            record["offset"], record["bytes"] = begin + size * place, packed_bytes(format_of(weight), weight.shape)
            self._remember(name, record)

    def vector(self, name: str | None) -> int:
        if name is None:
            return -1
        if name not in self.index:
            values = self._values(name)
            record = _record((len(values), 0), Format(0), stride=0)
            record["offset"], record["bytes"], record["vector"] = self._align(), values.nbytes, 1
            self._put(values.view(np.uint8))
            self._remember(name, record)
        return self.index[name]

    def _values(self, name: str) -> npt.NDArray[np.float32]:
        for table, values in enumerate(self.network.hyper.rope):
            if name == rope_name(table):
                return np.ascontiguousarray(values, np.float32)
        return np.ascontiguousarray(self.network.weights[name].vector(), np.float32)

    def _align(self) -> int:
        """Pads to the alignment; where the next tensor begins."""
        self._put(np.zeros(-self.position % ALIGNMENT, np.uint8))
        return self.position

    def _put(self, part: Bytes) -> None:
        self.file.write(part.data)
        self.position += part.nbytes

    def _remember(self, name: str, record: np.ndarray[Any, np.dtype[np.void]]) -> None:
        self.index[name] = len(self.records)
        self.records.append(record)


def _record(shape: tuple[int, ...], format: Format, stride: int) -> np.ndarray[Any, np.dtype[np.void]]:
    record = np.zeros((), MATRIX)
    record["rows"], record["columns"], record["stride"] = *shape, stride
    record["values"], record["block"] = format.values, format.block
    record["scale_bytes"], record["minimum"] = format.scale_bytes, format.minimum
    return record


def matrix_record(rows: int, columns: int, format: Format) -> Bytes:
    """The record of one packed matrix by itself, as the native kernels take it in tests."""
    record = _record((rows, columns), format, stride=0)
    return np.frombuffer(record.tobytes(), np.uint8)


def _write(file: IO[bytes], network: Network, ops: list[Op], meta: dict[str, Any]) -> None:
    file.write(bytes(DATA_OFFSET))
    writer = _Writer(file, network)
    op_records = np.zeros(len(ops), OP)
    for record, op in zip(op_records, ops, strict=True):
        _fill(record, op, writer)
    sizes = _sizes(network.hyper)
    header = np.zeros((), HEADER)
    for name, value in sizes.items():
        header[name] = value
    header["magic"], header["version"], header["header_bytes"] = MAGIC, FORMAT_VERSION, HEADER.itemsize
    header["data_offset"], header["data_bytes"] = DATA_OFFSET, writer.position
    matrices = np.stack(writer.records)
    header["matrices_offset"], header["matrix_count"] = DATA_OFFSET + writer.position, len(matrices)
    header["ops_offset"], header["op_count"] = int(header["matrices_offset"]) + matrices.nbytes, len(ops)
    header["meta_offset"] = int(header["ops_offset"]) + op_records.nbytes
    meta = meta | {
        "architecture": network.architecture, "compiler": COMPILER_VERSION, "sizes": sizes,
        "passes": [name for name, _ in PASSES] + ["join_norms"], "operators": [_describe(op, writer) for op in ops],
    }  # fmt: skip
    # The digest covers everything before the meta data; the meta data's length is fixed before it is known.
    length = len(json.dumps(meta | {"pieces_sha256": "0" * 64}).encode())
    header["meta_bytes"] = length
    file.write(matrices.tobytes())
    file.write(op_records.tobytes())
    file.seek(0)
    file.write(header.tobytes())
    file.flush()
    digest = _digest(np.memmap(file.name, dtype=np.uint8, mode="r").data)
    file.seek(0, os.SEEK_END)
    file.write(json.dumps(meta | {"pieces_sha256": digest}).encode())


def _sizes(hyper: Hyperparameters) -> dict[str, int]:
    names = ("hidden", "layers", "query_heads", "kv_heads", "head_size", "intermediate", "vocabulary", "context")
    return {name: int(getattr(hyper, name)) for name in names} | {"rope_tables": len(hyper.rope)}


def _fill(record: np.void, op: Op, writer: _Writer) -> None:
    record["kind"], record["section"] = KINDS.index(op.kind), int(op.head)
    for field, indices in (
        ("matrix", writer.pair(*op.matrices) if op.kind == "gate_up_act" else [writer.matrix(m) for m in op.matrices]),
        ("bias", [writer.vector(name) for name in op.biases]),
        ("norm", [writer.vector(name) for name in op.norms]),
    ):
        record[field] = -1
        record[field][: len(indices)] = indices
    record["layer"], record["rope"], record["window"] = op.layer, op.rope, op.window
    record["emit"], record["input"], record["activation"] = op.emit, op.input, ACTIVATIONS.index(op.activation)
    record["epsilon"], record["scale"] = op.epsilon, op.scale


def _describe(op: Op, writer: _Writer) -> dict[str, Any]:
    tensors = {name: str(format_of(writer.network.weights[name])) for name in op.matrices}
    emit = [form for bit, form in ((1, "int8"), (2, "f32")) if op.emit & bit]
    described: dict[str, Any] = {
        "op": op.kind,
        "tensors": tensors,
        "emit": emit,
        "section": "head" if op.head else "body",
    }
    if op.kind in ("qkv_rope_kv", "attention"):
        described |= {"layer": op.layer, "window": op.window}
    return described
