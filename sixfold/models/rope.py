"""Rotary frequencies: base, linear scaling and Llama 3 scaling (RoFormer, Su et al. 2021; Llama 3 model card).

Owns: tables of inverse frequencies and the row order of GGUF's interleaved pairs. Must not know: how rotation runs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sixfold.errors import UnsupportedModelError

if TYPE_CHECKING:
    from sixfold.models.source import Source


def frequencies(size: int, base: float) -> npt.NDArray[np.float32]:
    """Inverse frequencies [size / 2] of a head part of ``size`` values, radians per position."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return (1.0 / np.float32(base) ** exponents).astype(np.float32)


def rope_table(source: Source, head_size: int, base: float) -> npt.NDArray[np.float32]:
    """The table the file asks for. Raises :class:`UnsupportedModelError` for a scaling we do not have."""
    if source.gguf:
        return _gguf_table(source, head_size, base)
    return _hf_table(_hf_rope(source), head_size, base, source.model.metadata)


def _gguf_table(source: Source, head_size: int, base: float) -> npt.NDArray[np.float32]:
    table = frequencies(int(source.setting("rope.dimension_count", "", head_size)), base)
    scaling = source.setting("rope.scaling.type", "", "none")
    if scaling == "linear":
        table = table / np.float32(source.setting("rope.scaling.factor", "", 1.0))
    elif scaling not in ("none", ""):
        raise _unsupported(scaling)
    factors = source.raw("rope_freqs.weight")  # Llama 3's scaling, worked out by the converter
    return table if factors is None else (table / factors.dequantize().reshape(-1)).astype(np.float32)


def _hf_rope(source: Source) -> dict[str, Any]:
    # "rope_parameters" since transformers 5, "rope_scaling" before
    settings = source.model.metadata.get("rope_parameters") or source.model.metadata.get("rope_scaling") or {}
    return dict(settings) if isinstance(settings, dict) else {}


def _hf_table(
    settings: dict[str, Any], head_size: int, base: float, config: Any
) -> npt.NDArray[np.float32]:  # fmt: skip
    base = float(settings.get("rope_theta") or base)
    partial = float(settings.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
    table = frequencies(int(head_size * partial), base)
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind == "default":
        return table
    if kind == "linear":
        return table / np.float32(settings["factor"])
    if kind == "llama3":
        return _llama3(table, settings)
    raise _unsupported(kind)


def _llama3(table: npt.NDArray[np.float32], settings: dict[str, Any]) -> npt.NDArray[np.float32]:
    """Long wavelengths are slowed by ``factor``, short ones kept, those between interpolated."""
    factor, low, high = (float(settings[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = float(settings["original_max_position_embeddings"])
    wavelength = 2 * math.pi / table
    smooth = np.clip((trained / wavelength - low) / (high - low), 0.0, 1.0)
    return np.asarray((1 - smooth) * table / factor + smooth * table, dtype=np.float32)


def _unsupported(kind: Any) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The model uses rope scaling {kind!r}", cause="Sixfold has none, linear and llama3",
        remedy="Use a model without it",
    )  # fmt: skip


def split_pairs(heads: int, head_size: int) -> npt.NDArray[np.int64]:
    """The row order that turns interleaved pairs (2i, 2i+1), as GGUF stores Llama's Q and K, into halves (i, i+n/2)."""
    one = np.concatenate([np.arange(0, head_size, 2), np.arange(1, head_size, 2)])
    return np.asarray((np.arange(heads)[:, None] * head_size + one).reshape(-1), dtype=np.int64)
