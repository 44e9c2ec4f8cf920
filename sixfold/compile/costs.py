"""What each operator of a plan has to read and compute, from the plan file itself.

Owns: bytes of matrices and multiply-accumulates a row. Must not know: how long anything takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sixfold.compile.formats import Format
from sixfold.compile.lower import KINDS
from sixfold.compile.plan import HEADER, MATRIX, OP, Bytes, Plan


@dataclass(frozen=True)
class OperatorCost:
    """One operator: ``section`` 0 is the body, 1 the head; ``index`` counts within it, as the executor does."""

    kind: str
    section: int
    index: int
    weight_bytes: int  # packed matrices, read once a step
    row_bytes: int  # read once a row: an embedding
    macs: int  # multiply-accumulates with matrices, a row
    integer: bool  # of int8 activations
    window: int  # keys that attention looks back, 0: all
    layer: int = 0  # whose KV memory attention reads


@dataclass(frozen=True)
class MatrixShape:
    """A distinct shape and format of the matrices of a plan."""

    rows: int
    columns: int
    format: Format


def operator_costs(plan: Plan) -> list[OperatorCost]:
    matrices, operators = plan_records(plan.data)
    costs: list[OperatorCost] = []
    next_index = [0, 0]
    for record in operators:
        kind, section = KINDS[int(record["kind"])], int(record["section"])
        used = [matrices[i] for i in record["matrix"] if i >= 0]
        size = sum(int(matrix["bytes"]) for matrix in used)
        looks_up = kind == "embed"
        costs.append(
            OperatorCost(
                kind=kind,
                section=section,
                index=next_index[section],
                weight_bytes=0 if looks_up else size,
                row_bytes=size // int(used[0]["rows"]) if looks_up else 0,
                macs=0 if looks_up else sum(int(m["rows"]) * int(m["columns"]) for m in used),
                integer=any(Format(int(m["values"])).quantised for m in used),
                window=int(record["window"]),
                layer=int(record["layer"]),
            )
        )
        next_index[section] += 1
    return costs


def matrix_shapes(plan: Plan) -> list[MatrixShape]:
    """The matrices that operators multiply by, each distinct shape and format once, in the plan's order."""
    matrices, operators = plan_records(plan.data)
    found: dict[MatrixShape, None] = {}
    for record in operators:
        if KINDS[int(record["kind"])] == "embed":
            continue
        for matrix in (matrices[i] for i in record["matrix"] if i >= 0):
            values, block, scale, minimum = (int(matrix[n]) for n in ("values", "block", "scale_bytes", "minimum"))
            format = Format(values, block, scale, minimum)
            found[MatrixShape(int(matrix["rows"]), int(matrix["columns"]), format)] = None
    return list(found)


def weight_bytes(plan: Plan) -> int:
    """Bytes of weights that a step with logits reads, whatever its rows."""
    return sum(cost.weight_bytes for cost in operator_costs(plan))


def parameters(plan: Plan) -> int:
    """Weights that every token is multiplied by: without an embedding, unless it is the output matrix, too."""
    return sum(cost.macs for cost in operator_costs(plan))


def plan_records(data: Bytes) -> tuple[Any, Any]:
    """Views of the file's matrix and operator records."""
    header = data[: HEADER.itemsize].view(HEADER)[0]
    tables = []
    for name, count, dtype in (("matrices_offset", "matrix_count", MATRIX), ("ops_offset", "op_count", OP)):
        begin = int(header[name])
        tables.append(data[begin : begin + int(header[count]) * dtype.itemsize].view(dtype))
    return tables[0], tables[1]
