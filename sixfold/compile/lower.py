"""From the fused graph to the executor's operators, in order, with tensors by index.

Owns: the choice of operators and which forms activations are written in. Must not know: bytes and files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sixfold.compile.formats import Format
from sixfold.compile.pack import format_of
from sixfold.compile.passes import check_fused
from sixfold.models.graph import Node, topological
from sixfold.models.network import Network

# OpKind in csrc/plan.hpp
KINDS = ("rope_table", "embed", "norm", "norm_add_norm", "qkv_rope_kv", "attention", "merge", "matmul_add", "matmul",
         "gate_up_act", "norm_add", "logits", "gather_norm")  # fmt: skip
ACTIVATIONS = ("silu", "gelu_tanh")
EMIT_INT8, EMIT_F32 = 1, 2
ATTENDED, GATED = 0, 1  # which activations a projection reads


@dataclass(frozen=True)
class Op:
    """One operator; tensors by canonical name, turned into indices when the plan is written."""

    kind: str
    head: bool = False  # in the section that runs on wanted rows only
    matrices: tuple[str, ...] = ()
    biases: tuple[str | None, ...] = ()
    norms: tuple[str | None, ...] = ()
    layer: int = 0
    rope: int = 0
    window: int = 0
    emit: int = 0
    input: int = ATTENDED
    activation: str = "silu"
    epsilon: float = 0.0
    scale: float = 1.0


@dataclass
class _Lowering:
    network: Network
    ops: list[Op] = field(default_factory=list)

    def forms(self, matrices: Sequence[str]) -> int:
        """The forms in which these matrices want their input."""
        formats = [self.format(name) for name in matrices]
        return (EMIT_INT8 if any(f.quantised for f in formats) else 0) | (
            EMIT_F32 if not all(f.quantised for f in formats) else 0
        )

    def format(self, name: str) -> Format:
        return format_of(self.network.weights[name])

    def lower(self, node: Node, consumers: list[Node]) -> None:
        getattr(self, f"_{node.op}")(node, [weight for user in consumers for weight in _matrices(user)])

    def _embed(self, node: Node, consumed: list[str]) -> None:
        self.ops.append(Op("embed", matrices=node.weights, scale=node["scale"]))

    def _rms_norm(self, node: Node, consumed: list[str]) -> None:
        self.ops.append(Op("norm", norms=node.weights, epsilon=node["epsilon"], emit=self.forms(consumed)))

    def _qkv_rope_kv(self, node: Node, consumed: list[str]) -> None:
        self.ops.append(
            Op("qkv_rope_kv", matrices=node.weights, biases=node["bias"], norms=node["norm"], layer=node["layer"],
               rope=node["table"], epsilon=node["epsilon"], scale=node["scale"])
        )  # fmt: skip

    def _attention(self, node: Node, consumed: list[str]) -> None:
        self.ops.append(Op("attention", layer=node["layer"], window=node["window"]))
        self.ops.append(Op("merge", layer=node["layer"], emit=self.forms(consumed)))

    def _gate_up_act(self, node: Node, consumed: list[str]) -> None:
        emit = self.forms(consumed)
        self.ops.append(Op("gate_up_act", matrices=node.weights, activation=node["kind"], emit=emit))

    def _linear(self, node: Node, consumed: list[str]) -> None:
        self._project("matmul", node, node.inputs[0])

    def _linear_add(self, node: Node, consumed: list[str]) -> None:
        self._project("matmul_add", node, node.inputs[1])

    def _project(self, kind: str, node: Node, source: Node) -> None:
        origin = GATED if source.op == "gate_up_act" else ATTENDED
        self.ops.append(Op(kind, matrices=node.weights[:1], biases=node.weights[1:], input=origin))

    def _norm_add(self, node: Node, consumed: list[str]) -> None:
        self.ops.append(Op("norm_add", norms=node.weights, epsilon=node["epsilon"]))


def lower(network: Network, fused: Node) -> list[Op]:
    """The operators of a network whose graph went through the passes."""
    check_fused(fused)
    lowering = _Lowering(network)
    for table in range(len(network.hyper.rope)):
        lowering.ops.append(Op("rope_table", norms=(rope_name(table),), rope=table))
    nodes = list(topological(fused))
    users: dict[int, list[Node]] = {}
    for node in nodes:
        for source in node.inputs:
            users.setdefault(id(source), []).append(node)
    last_norm = fused.inputs[0]
    for node in nodes:
        if node is not fused and node is not last_norm:
            lowering.lower(node, users[id(node)])
    emit = lowering.forms(fused.weights)
    lowering.ops.append(Op("gather_norm", head=True, norms=last_norm.weights, epsilon=last_norm["epsilon"], emit=emit))
    lowering.ops.append(Op("logits", head=True, matrices=fused.weights))
    return join_norms(lowering.ops)


def join_norms(ops: list[Op]) -> list[Op]:
    """A norm that follows a norm_add reads the residual just written: both become one pass over the row."""
    joined: list[Op] = []
    for op in ops:
        if op.kind == "norm" and joined and joined[-1].kind == "norm_add" and joined[-1].epsilon == op.epsilon:
            joined[-1] = replace(joined[-1], kind="norm_add_norm", norms=joined[-1].norms + op.norms, emit=op.emit)
        else:
            joined.append(op)
    return joined


def rope_name(table: int) -> str:
    """The name a rope table's frequencies go by among the plan's vectors."""
    return f"rope.{table}"


def _matrices(node: Node) -> tuple[str, ...]:
    """The matrices by which a node multiplies its (non-residual) input."""
    if node.op in ("linear", "linear_add"):
        return node.weights[:1]
    return node.weights if node.op in ("qkv_rope_kv", "gate_up_act") else ()
