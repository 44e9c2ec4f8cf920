"""The oracle: every operator in plain numpy, and a network's unfused graph run with them, in float32.

Owns: the meaning of each operator. Must not know: fusion, packing, paging or speed. Native kernels are compared with
these functions; compiled plans are compared with :class:`ReferenceModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sixfold.models.graph import Node, topological
from sixfold.models.network import Hyperparameters, Network
from sixfold.runtime.batch import Float32

BLOCK = 32  # activations that share a scale


def rms_norm(x: Float32, weight: Float32, epsilon: float) -> Float32:
    """x [..., n] / rms(x) * weight [n] (Zhang & Sennrich 2019)."""
    mean = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    return np.asarray(x / np.sqrt(mean + np.float32(epsilon)) * weight, np.float32)


def rope(x: Float32, positions: np.ndarray, frequencies: Float32) -> Float32:
    """Rotates pairs (i, i + n) of x [T, heads, head_size] by position * frequencies [n] (Su et al. 2021)."""
    n = len(frequencies)
    angles = positions[:, None].astype(np.float32) * frequencies
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :n], x[..., n : 2 * n]
    return np.concatenate([a * cosine - b * sine, b * cosine + a * sine, x[..., 2 * n :]], axis=-1)


def attention(q: Float32, k: Float32, v: Float32, position: int = 0, window: int = 0) -> Float32:
    """Causal attention; token t is at position + t and sees the last ``window`` keys (0: all).

    q [T, query heads, d], already scaled; k, v [keys, KV heads, d] from position 0 on. Returns [T, query heads, d].
    """
    tokens, heads, _ = q.shape
    keys = len(k)
    group = heads // k.shape[1]
    at = position + np.arange(tokens)[:, None]
    key = np.arange(keys)[None]
    seen = (key <= at) & ((key > at - window) if window else True)
    out = np.empty_like(q)
    for head in range(heads):
        scores = np.where(seen, q[:, head] @ k[:, head // group].T, -np.inf)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[:, head] = scores @ v[:, head // group] / scores.sum(axis=-1, keepdims=True)
    return out


def silu(x: Float32) -> Float32:
    with np.errstate(over="ignore"):  # exp overflows to infinity and the quotient to the right zero
        return np.asarray(x / (1 + np.exp(-x)), np.float32)


def gelu_tanh(x: Float32) -> Float32:
    """The tanh approximation (Hendrycks & Gimpel 2016)."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.asarray(0.5 * x * (1 + np.tanh(inner)), np.float32)


def quantise_activations(x: Float32) -> tuple[np.ndarray, Float32]:
    """x [..., 32 n] -> int8 [..., n, 32] and scale [..., n], rounded to nearest even."""
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
    peak = np.abs(blocks).max(axis=-1)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
    q = np.rint(blocks * inverse[..., None]).astype(np.int8)
    return q, np.asarray(peak / np.float32(127), np.float32)


ACTIVATIONS: dict[str, Callable[[Float32], Float32]] = {"silu": silu, "gelu_tanh": gelu_tanh}


class ReferenceModel:
    """Runs the unfused graph over a whole sequence. Dequantised weights are kept, so it is for small models."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._weights: dict[str, Float32] = {}

    def logits(self, tokens: Sequence[int], last: int | None = None) -> Float32:
        """Token ids from position 0 on -> logits [T, V], or of the ``last`` positions only [last, V]."""
        ids = np.asarray(tokens, np.int64)
        values: dict[int, Float32] = {}
        head = self.network.output
        for node in topological(head):
            inputs = [values[id(source)] for source in node.inputs]
            if node is head and last is not None:
                inputs = [inputs[0][-last:]]
            values[id(node)] = self._run(node, inputs, ids)
        return values[id(head)]

    def _run(self, node: Node, inputs: list[Float32], ids: np.ndarray) -> Float32:
        h = self.network.hyper
        match node.op:
            case "embed":
                return np.asarray(self._matrix(node.weights[0])[ids] * np.float32(node["scale"]))
            case "rms_norm":
                return rms_norm(inputs[0], self._vector(node.weights[0]), node["epsilon"])
            case "head_norm":
                return _flat(rms_norm(_heads(inputs[0], h), self._vector(node.weights[0]), node["epsilon"]))
            case "linear":
                product = inputs[0] @ self._matrix(node.weights[0]).T
                return product + self._vector(node.weights[1]) if len(node.weights) > 1 else product
            case "rope":
                return _flat(rope(_heads(inputs[0], h), np.arange(len(ids)), h.rope[node["table"]]))
            case "attention":
                q, k, v = (_heads(x, h) for x in inputs)
                return _flat(attention(q * np.float32(node["scale"]), k, v, window=node["window"]))
            case "activation":
                return ACTIVATIONS[node["kind"]](inputs[0])
            case "multiply":
                return inputs[0] * inputs[1]
            case "add":
                return inputs[0] + inputs[1]
        raise AssertionError(f"operator {node.op!r} has no reference")

    def _matrix(self, name: str) -> Float32:
        if name not in self._weights:
            self._weights[name] = self.network.weights[name].matrix()
        return self._weights[name]

    def _vector(self, name: str) -> Float32:
        if name not in self._weights:
            self._weights[name] = self.network.weights[name].vector()
        return self._weights[name]


def _heads(x: Float32, hyper: Hyperparameters) -> Float32:
    return x.reshape(len(x), -1, hyper.head_size)


def _flat(x: Float32) -> Float32:
    return x.reshape(len(x), -1)
