"""Fusion passes: each rewrites the graph into fewer, larger operators, and has a name that ``show --plan`` prints.

Owns: which patterns fuse. Must not know: weights' formats, buffers, the executor. A pass is a rule that looks at one
node whose inputs are already rewritten, and returns the node to put in its place. Fused operators:

    qkv_rope_kv      x; weights q, k, v (and biases, head norms in attributes)   the KV write happens here
    attention        qkv_rope_kv                                                 once its inputs are fused
    gate_up_act      x; weights gate, up; kind
    linear_add       residual, x; weights                                        residual + linear(x)
    norm_add         residual, y; weights norm                                   residual + rms_norm(y)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sixfold.errors import UnsupportedModelError
from sixfold.models.graph import Node, topological

Rule = Callable[[Node], Node]


def fuse_qkv(node: Node) -> Node:
    """Three projections of one input, their biases, head norms and rope, and the write to the KV pages."""
    if node.op != "attention" or len(node.inputs) != 3:
        return node
    q, k, v = (_projection(source) for source in node.inputs)
    if q.input is not k.input or k.input is not v.input or q.table != k.table:
        return node
    attributes = {
        "layer": node["layer"], "scale": node["scale"], "table": q.table, "epsilon": q.epsilon,
        "bias": (q.bias, k.bias, v.bias), "norm": (q.norm, k.norm),
    }  # fmt: skip
    fused = Node("qkv_rope_kv", (q.input,), (q.weight, k.weight, v.weight), attributes)
    return Node("attention", (fused,), (), {"layer": node["layer"], "window": node["window"]})


@dataclass(frozen=True)
class _Projection:
    input: Node
    weight: str
    bias: str | None
    norm: str | None
    epsilon: float
    table: int | None


def _projection(node: Node) -> _Projection:
    table, norm, epsilon = None, None, 0.0
    if node.op == "rope":
        table, node = node["table"], node.inputs[0]
    if node.op == "head_norm":
        norm, epsilon, node = node.weights[0], node["epsilon"], node.inputs[0]
    bias = node.weights[1] if len(node.weights) > 1 else None
    return _Projection(node.inputs[0], node.weights[0], bias, norm, epsilon, table)


def fuse_gate_up(node: Node) -> Node:
    """activation(gate(x)) * up(x): both projections in one pass over x, the product quantised where it is made."""
    if node.op != "multiply" or node.inputs[0].op != "activation":
        return node
    gate, up = node.inputs[0].inputs[0], node.inputs[1]
    if gate.op != "linear" or up.op != "linear" or gate.inputs != up.inputs or len(gate.weights + up.weights) != 2:
        return node
    return Node("gate_up_act", gate.inputs, gate.weights + up.weights, {"kind": node.inputs[0]["kind"]})


def fuse_post_norm(node: Node) -> Node:
    """The norm after a block and the residual add."""
    if node.op != "add" or node.inputs[1].op != "rms_norm":
        return node
    norm = node.inputs[1]
    return Node("norm_add", (node.inputs[0], norm.inputs[0]), norm.weights, norm.attributes)


def fuse_residual(node: Node) -> Node:
    """The residual add as the epilogue of the output and down projections."""
    if node.op != "add" or node.inputs[1].op != "linear":
        return node
    linear = node.inputs[1]
    return Node("linear_add", (node.inputs[0], *linear.inputs), linear.weights)


PASSES: tuple[tuple[str, Rule], ...] = (
    ("fuse_qkv", fuse_qkv),
    ("fuse_gate_up", fuse_gate_up),
    ("fuse_post_norm", fuse_post_norm),
    ("fuse_residual", fuse_residual),
)


def run_passes(output: Node) -> Node:
    for _, rule in PASSES:
        output = rewrite(output, rule)
    return output


def rewrite(output: Node, rule: Rule) -> Node:
    """Applies ``rule`` to every node, inputs first; nodes nothing needs any more fall away."""
    done: dict[int, Node] = {}
    for node in topological(output):
        inputs = tuple(done[id(source)] for source in node.inputs)
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        done[id(node)] = rule(node if same else Node(node.op, inputs, node.weights, node.attributes))
    return done[id(output)]


def check_fused(output: Node) -> None:
    """Raises :class:`UnsupportedModelError` if an operator is left that the executor does not have by itself."""
    known = {"embed", "rms_norm", "qkv_rope_kv", "attention", "linear", "linear_add", "norm_add", "gate_up_act"}
    left = sorted({node.op for node in topological(output)} - known)
    if left:
        raise UnsupportedModelError(
            f"No fused operator for {', '.join(left)} in this place", cause="the executor runs fused plans only",
            remedy="This is a gap in a models/ file or in compile/passes.py",
        )  # fmt: skip
