"""A network: hyperparameters, the graph, and its weights under canonical names.

Owns: the types that models/<architecture>.py fills and the compiler reads, and the lookup by architecture name.
Must not know: fusion or packing.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import sixfold.models
from sixfold.errors import ModelFileError, UnsupportedModelError
from sixfold.models.graph import Node
from sixfold.weights.model_file import ModelFile
from sixfold.weights.tensor import Tensor

# Modules of this package that are not architectures.
_NOT_ARCHITECTURES = {"graph", "network", "source", "blocks", "rope"}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Hyperparameters:
    """The sizes of a decoder. ``rope``: one array of inverse frequencies a table, radians per position."""

    hidden: int
    layers: int
    query_heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    context: int
    epsilon: float
    rope: tuple[Floats, ...]


@dataclass(frozen=True)
class Weight:
    """A tensor as the network wants it: rows reordered by ``row_order``, ``offset`` added (only to float vectors)."""

    tensor: Tensor
    row_order: npt.NDArray[np.int64] | None = None
    offset: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def rows(self, begin: int, end: int) -> Tensor:
        """Rows [begin, end) of a matrix; a quantised row is a run of bytes, so reordering rows is exact."""
        which = slice(begin, end) if self.row_order is None else self.row_order[begin:end]
        data = self.tensor.data[which]
        return Tensor(self.tensor.name, self.tensor.type, (data.shape[0], *self.tensor.shape[1:]), data)

    def vector(self) -> Floats:
        """A one-dimensional weight as float32."""
        values = self.tensor.dequantize().reshape(-1)
        if self.row_order is not None:
            values = values[self.row_order]
        return values + np.float32(self.offset) if self.offset else values

    def matrix(self) -> Floats:
        """The whole matrix as float32 [rows, columns], for the reference."""
        return self.rows(0, self.shape[0]).dequantize()


@dataclass(frozen=True)
class Network:
    architecture: str
    hyper: Hyperparameters
    output: Node  # the logits; a linear over an rms_norm
    weights: Mapping[str, Weight]


def supported_architectures() -> tuple[str, ...]:
    names = (module.name for module in pkgutil.iter_modules(sixfold.models.__path__))
    return tuple(sorted(name for name in names if name not in _NOT_ARCHITECTURES))


def load_network(model: ModelFile) -> Network:
    """Describes ``model``'s network. Raises :class:`UnsupportedModelError` for an architecture we do not have and
    :class:`ModelFileError` when tensors are missing or have the wrong shape."""
    supported = supported_architectures()
    if model.architecture not in supported:
        raise UnsupportedModelError(
            f"{model.path.name} is of the architecture {model.architecture!r}, which Sixfold does not run",
            cause=f"supported are {', '.join(supported)}",
            remedy="Use a model of one of these architectures, or serve it by another engine behind the gateway",
        )
    module = importlib.import_module(f"sixfold.models.{model.architecture}")
    try:
        network: Network = module.build(model)
    except (KeyError, TypeError, ValueError) as error:  # metadata of a type that no converter writes
        raise ModelFileError(
            f"The metadata of {model.path.name} can not be understood", cause=f"{type(error).__name__}: {error}",
            remedy="Convert or download the model again",
        ) from error  # fmt: skip
    _check_shapes(network)
    return network


def _check_shapes(network: Network) -> None:
    h = network.hyper
    q, kv = h.query_heads * h.head_size, h.kv_heads * h.head_size
    wanted: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (h.vocabulary, h.hidden), "output.weight": (h.vocabulary, h.hidden),
        "output_norm.weight": (h.hidden,), "attn_norm.weight": (h.hidden,), "ffn_norm.weight": (h.hidden,),
        "post_attention_norm.weight": (h.hidden,), "post_ffw_norm.weight": (h.hidden,),
        "attn_q.weight": (q, h.hidden), "attn_k.weight": (kv, h.hidden), "attn_v.weight": (kv, h.hidden),
        "attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,), "attn_output.bias": (h.hidden,),
        "attn_q_norm.weight": (h.head_size,), "attn_k_norm.weight": (h.head_size,),
        "attn_output.weight": (h.hidden, q), "ffn_down.weight": (h.hidden, h.intermediate),
        "ffn_gate.weight": (h.intermediate, h.hidden), "ffn_up.weight": (h.intermediate, h.hidden),
    }  # fmt: skip
    for name, weight in network.weights.items():
        short = name.split(".", 2)[2] if name.startswith("blk.") else name
        if weight.shape != wanted[short]:
            raise ModelFileError(
                f"Tensor {weight.tensor.name!r} has the shape {weight.shape} where {wanted[short]} is needed",
                cause="the file's metadata and tensors disagree",
                remedy="Convert or download the model again",
            )
