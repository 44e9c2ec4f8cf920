"""A LoRA adapter laid out for a plan: which matrices it changes, and its factors as tiles of floats.

Owns: the mapping of an adapter's modules to a plan's matrices, and the layout (csrc/lora.hpp draws it). Must not know:
adapter files, slots, or who uses an adapter.

Rows of Q and K are in the order of Hugging Face in every plan, also in one compiled from a GGUF file whose rows are in
another order, so that B needs no reordering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sixfold.compile.costs import plan_records
from sixfold.compile.formats import BF16, F16, F32
from sixfold.compile.lower import KINDS
from sixfold.compile.pack import BLOCK, TILE
from sixfold.compile.plan import Plan
from sixfold.errors import ModelFileError
from sixfold.models.source import HF_NAMES
from sixfold.weights.peft import AdapterFile, LowRank

ADAPTED = ("qkv_rope_kv", "matmul", "matmul_add", "gate_up_act")  # operators whose products an adapter may change
_WIDTHS = {F32: "<f4", F16: "<u2", BF16: "<u2"}


@dataclass(frozen=True, eq=False)
class PackedAdapter:
    values: int  # one of formats.F32, F16, BF16: the file's own, or float32 where its tensors differ
    data: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    records: npt.NDArray[np.int64]  # [n, 6]: is B, matrix, offset, tiles, width, first


@dataclass(frozen=True)
class _Matrix:
    index: int
    name: str
    shape: tuple[int, int]  # outputs, inputs


def pack_adapter(file: AdapterFile, plan: Plan) -> PackedAdapter:
    """Raises ModelFileError when the adapter is for another model."""
    left = {_canonical(module): part for module, part in file.parts.items()}
    types = {tensor.type for part in left.values() for tensor in (part.a, part.b)}
    values = {"F16": F16, "BF16": BF16}.get(next(iter(types)), F32) if len(types) == 1 else F32
    layout = _Layout(values)
    for matrices in _operators(plan):
        parts = [(matrix, left.pop(matrix.name)) for matrix in matrices if matrix.name in left]
        for matrix, part in parts:
            _check_shape(file, matrix, part)
        if parts:
            layout.add(matrices[0].index, parts)
    if left:
        raise _foreign(file, f"the model has no {sorted(left)[0]}")
    return layout.packed()


class _Layout:
    """Appends part after part to one run of bytes."""

    def __init__(self, values: int) -> None:
        self._values = values
        self._pieces: list[npt.NDArray[np.uint8]] = []
        self._size = 0
        self._scales: list[npt.NDArray[np.float32]] = []
        self._records: list[tuple[int, int, int, int, int, int]] = []

    def add(self, operator: int, parts: list[tuple[_Matrix, LowRank]]) -> None:
        """The A of matrices that read one input, stacked, then each B."""
        ranks = [part.rank + part.rank % 2 for _, part in parts]
        total = sum(ranks) + -sum(ranks) % TILE
        scales = np.zeros(total, np.float32)
        stacked = np.zeros((total, parts[0][0].shape[1]), _WIDTHS[self._values])
        first = 0
        for (_, part), rank in zip(parts, ranks, strict=True):
            stacked[first : first + part.rank] = self._floats(part.a)
            scales[first : first + part.rank] = part.scale
            first += rank
        index = sum(map(len, self._scales))
        self._scales.append(scales)
        self._put(0, operator, stacked, BLOCK, index)
        first = 0
        for (matrix, part), rank in zip(parts, ranks, strict=True):
            self._put(1, matrix.index, self._floats(part.b), 2, first)
            first += rank

    def packed(self) -> PackedAdapter:
        return PackedAdapter(
            self._values, np.concatenate(self._pieces), np.concatenate(self._scales), np.array(self._records, np.int64)
        )

    def _floats(self, tensor: Any) -> npt.NDArray[Any]:
        """The values as they are kept: float32, or the bits of 16."""
        if self._values == F32:
            return np.asarray(tensor.dequantize())
        return np.asarray(tensor.data.view("<u2").reshape(tensor.shape))

    def _put(self, up: int, matrix: int, values: npt.NDArray[Any], multiple: int, first: int) -> None:
        rows, columns = values.shape
        padded = np.zeros((rows + -rows % TILE, columns + -columns % multiple), values.dtype)
        padded[:rows, :columns] = values
        tiles = np.ascontiguousarray(padded.reshape(-1, TILE, padded.shape[1]).transpose(0, 2, 1))
        self._records.append((up, matrix, self._size, tiles.shape[0], tiles.shape[1], first))
        piece = tiles.reshape(-1).view(np.uint8)
        self._pieces += [piece, np.zeros(-piece.size % 64, np.uint8)]
        self._size += piece.size + -piece.size % 64


def _operators(plan: Plan) -> list[list[_Matrix]]:
    """The matrices of every operator that an adapter may change."""
    matrices, ops = plan_records(plan.data)
    found = []
    for record, described in zip(ops, plan.operators, strict=True):
        if KINDS[record["kind"]] in ADAPTED:
            indices = [int(i) for i in record["matrix"][: len(described["tensors"])]]
            found.append(
                [
                    _Matrix(i, name, (int(matrices[i]["rows"]), int(matrices[i]["columns"])))
                    for i, name in zip(indices, described["tensors"], strict=True)
                ]
            )
    return found


def _canonical(module: str) -> str:
    _, layer, kind = module.split(".", 2)
    return f"blk.{layer}.{HF_NAMES[kind]}.weight"


def _check_shape(file: AdapterFile, matrix: _Matrix, part: LowRank) -> None:
    shape = (part.b.shape[0], part.a.shape[1])
    if shape != matrix.shape:
        raise _foreign(file, f"it changes {matrix.name} as if that were {shape}, but it is {matrix.shape}")


def _foreign(file: AdapterFile, cause: str) -> ModelFileError:
    return ModelFileError(
        f"The adapter {file.path} does not fit the model", cause=cause,
        remedy="Use an adapter that was trained on this model",
    )  # fmt: skip
