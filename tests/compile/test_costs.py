"""What operators cost, against the shapes of a tiny model."""

from __future__ import annotations

import pytest

from sixfold.compile import build
from sixfold.compile.costs import MatrixShape, matrix_shapes, operator_costs, parameters, weight_bytes
from sixfold.compile.formats import FORMATS
from sixfold.compile.plan import Plan
from sixfold.weights.model_file import open_model
from tests.tiny_kinds import KINDS
from tests.tiny_models import write_gguf

TINY = KINDS["llama-wide"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    with open_model(write_gguf("llama-wide", tmp_path_factory.mktemp("costs") / "m.gguf", "Q4_1")) as model:
        return build(model, cache=False)


def test_multiply_accumulates_are_those_of_the_matrices(plan: Plan) -> None:
    query, key = TINY.heads * TINY.head_dim, TINY.kv_heads * TINY.head_dim
    wanted = {
        "qkv_rope_kv": TINY.hidden * (query + 2 * key),
        "gate_up_act": 2 * TINY.hidden * TINY.intermediate,
        "logits": TINY.hidden * TINY.vocab,
        "embed": 0,
        "attention": 0,
        "norm": 0,
    }
    for cost in operator_costs(plan):
        if cost.kind in wanted:
            assert cost.macs == wanted[cost.kind], cost
    output, down = [cost.macs for cost in operator_costs(plan) if cost.kind == "matmul_add"][:2]
    assert (output, down) == (query * TINY.hidden, TINY.intermediate * TINY.hidden)


def test_bytes_are_those_of_the_packed_tiles(plan: Plan) -> None:
    gate_up = next(cost for cost in operator_costs(plan) if cost.kind == "gate_up_act")
    assert (
        gate_up.integer and gate_up.weight_bytes == 2 * TINY.hidden * TINY.intermediate * 20 // 32
    )  # 20 bytes a block
    embed = next(cost for cost in operator_costs(plan) if cost.kind == "embed")
    assert embed.weight_bytes == 0 and embed.row_bytes == TINY.hidden * 20 // 32
    assert parameters(plan) == sum(cost.macs for cost in operator_costs(plan)) > 0
    assert weight_bytes(plan) == sum(cost.weight_bytes for cost in operator_costs(plan))


def test_operators_are_counted_within_their_section(plan: Plan) -> None:
    costs = operator_costs(plan)
    for section in (0, 1):
        here = [cost.index for cost in costs if cost.section == section]
        assert here == list(range(len(here))) and here
    assert [cost.kind for cost in costs] == [operator["op"] for operator in plan.operators]


def test_each_shape_and_format_is_named_once(plan: Plan) -> None:
    shapes = matrix_shapes(plan)
    assert len(shapes) == len(set(shapes))
    assert MatrixShape(TINY.intermediate, TINY.hidden, FORMATS["Q4_1"]) in shapes
