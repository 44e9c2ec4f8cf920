"""The network as a graph of plain operators: what a model computes, not how it is run.

Owns: the node types and their meaning. Must not know: fusion, formats, buffers. T tokens, H hidden size; heads are the
leading part of a projection's output, [T, heads * head_size].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Node:
    """One operator. ``op`` is one of:

    embed        weights (table [V, H]); scale                       -> [T, H]
    rms_norm     x; weights (w [H]); epsilon                         -> [T, H]
    linear       x [T, K]; weights (w [N, K], or with a bias [N])    -> [T, N]
    head_norm    x; weights (w [head_size]); epsilon                 -> rms norm of every head by itself
    rope         x; table                                            -> rotates every head by its position
    attention    q, k, v; layer, scale, window (0: none)             -> [T, query heads * head_size]
    activation   x; kind ("silu", "gelu_tanh")
    multiply     a, b
    add          a, b
    """

    op: str
    inputs: tuple[Node, ...] = ()
    weights: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.attributes[name]


def embed(table: str, scale: float = 1.0) -> Node:
    return Node("embed", (), (table,), {"scale": scale})


def rms_norm(x: Node, weight: str, epsilon: float) -> Node:
    return Node("rms_norm", (x,), (weight,), {"epsilon": epsilon})


def linear(x: Node, weight: str, bias: str | None = None) -> Node:
    return Node("linear", (x,), (weight,) if bias is None else (weight, bias))


def head_norm(x: Node, weight: str, epsilon: float) -> Node:
    return Node("head_norm", (x,), (weight,), {"epsilon": epsilon})


def rope(x: Node, table: int) -> Node:
    return Node("rope", (x,), (), {"table": table})


def attention(q: Node, k: Node, v: Node, *, layer: int, scale: float, window: int = 0) -> Node:
    return Node("attention", (q, k, v), (), {"layer": layer, "scale": scale, "window": window})


def activation(x: Node, kind: str) -> Node:
    return Node("activation", (x,), (), {"kind": kind})


def multiply(a: Node, b: Node) -> Node:
    return Node("multiply", (a, b))


def add(a: Node, b: Node) -> Node:
    return Node("add", (a, b))


def topological(output: Node) -> Iterator[Node]:
    """Every node that ``output`` needs, inputs first; iterative, since deep models would exhaust recursion."""
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(output, False)]
    while stack:
        node, inputs_done = stack.pop()
        if inputs_done:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((source, False) for source in reversed(node.inputs))
