"""What a model is, read from its file without loading it: sizes, formats, memory.

Owns: :class:`ModelCard` and the arithmetic of memory. Must not know: how it is printed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sixfold.compile.formats import FORMATS
from sixfold.compile.pack import packed_bytes
from sixfold.engine.chat_template import ChatTemplate
from sixfold.engine.kv_cache import pages_for
from sixfold.errors import SixfoldError
from sixfold.models.graph import topological
from sixfold.models.network import Network, load_network
from sixfold.runtime.batch import PAGE_SIZE
from sixfold.runtime.kv_format import EXACT, exact_bytes, page_bytes
from sixfold.store import ResolvedModel
from sixfold.weights.model_file import ModelFile, open_model
from sixfold.weights.tensor import Tensor


@dataclass(frozen=True)
class FormatUse:
    """The tensors of one type: how many, how many weights, bytes in the file and packed, and as what."""

    type: str
    packed_as: str
    tensors: int
    weights: int
    file_bytes: int
    packed_bytes: int


@dataclass(frozen=True)
class ModelCard:
    name: str
    path: Path
    kind: str
    architecture: str
    title: str | None
    license: str | None
    chat_template: bool
    parameters: int
    file_bytes: int
    packed_bytes: int  # the compiled weights, which are mapped and shared between processes
    bytes_per_token: int  # weights read to make one token at batch 1
    sizes: Mapping[str, int]
    context: int
    rope_bases: tuple[float, ...]  # one a rope table, before any scaling
    rope_scaling: str | None
    windows: Mapping[int, int]  # tokens of sliding window (0: none) -> layers
    vocabulary: str  # the kind of tokenizer
    kv_format: str
    kv_page_bytes: int
    formats: tuple[FormatUse, ...]

    def kv_bytes(self, batch: int, context: int) -> int:
        """KV memory of ``batch`` sequences of ``context`` tokens, in whole pages, and what is kept beside them."""
        beside = exact_bytes(self.sizes, self.kv_format, sequences=batch, step_tokens=0)
        return batch * pages_for(context) * self.kv_page_bytes + beside

    @property
    def kv_bytes_per_token(self) -> float:
        return self.kv_page_bytes / PAGE_SIZE


def read_card(found: ResolvedModel, kv_format: str = EXACT) -> ModelCard:
    """Raises ModelFileError and UnsupportedModelError like a load would; reads no weights."""
    with open_model(found.path) as model:
        return card_of(found, model, load_network(model), kv_format)


def card_of(found: ResolvedModel, model: ModelFile, network: Network, kv_format: str = EXACT) -> ModelCard:
    hyper = network.hyper
    head = network.output.weights[0]
    packed = {name: _packed_bytes(weight.tensor) for name, weight in network.weights.items()}
    unread = packed["token_embd.weight"] if head != "token_embd.weight" else 0  # one row a token, not the table
    sizes = {
        name: int(getattr(hyper, name))
        for name in ("layers", "hidden", "intermediate", "query_heads", "kv_heads", "head_size", "vocabulary")
    }
    return ModelCard(
        name=found.name,
        path=found.path,
        kind=model.kind,
        architecture=network.architecture,
        title=_text(model.metadata.get("general.name")),
        license=found.license or _text(model.metadata.get("general.license")) or _text(model.metadata.get("license")),
        chat_template=_has_template(model),
        parameters=sum(math.prod(weight.shape) for weight in network.weights.values()),
        file_bytes=_size_on_disk(found.path),
        packed_bytes=sum(packed.values()),
        bytes_per_token=sum(packed.values()) - unread,
        sizes=sizes,
        context=hyper.context,
        rope_bases=_rope_bases(model, network),
        rope_scaling=_rope_scaling(model),
        windows=_windows(network),
        vocabulary=_text(model.metadata.get("tokenizer.ggml.model")) or "tokenizer.json",
        kv_format=kv_format,
        kv_page_bytes=page_bytes(sizes, kv_format),
        formats=_formats(network),
    )


def _packed_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor in a plan; a vector is float32 there."""
    if len(tensor.shape) == 1:
        return 4 * tensor.shape[0]
    return packed_bytes(FORMATS[tensor.type], tensor.shape)


def _formats(network: Network) -> tuple[FormatUse, ...]:
    by_type: dict[tuple[str, str], list[Tensor]] = {}
    for weight in network.weights.values():
        tensor = weight.tensor
        packed_as = "f32 vector" if len(tensor.shape) == 1 else str(FORMATS[tensor.type])
        by_type.setdefault((tensor.type, packed_as), []).append(tensor)
    uses = [
        FormatUse(
            kind, packed_as, len(tensors), sum(math.prod(t.shape) for t in tensors),
            sum(t.data.nbytes for t in tensors), sum(_packed_bytes(t) for t in tensors),
        )
        for (kind, packed_as), tensors in by_type.items()
    ]  # fmt: skip
    return tuple(sorted(uses, key=lambda use: -use.packed_bytes))


def _windows(network: Network) -> dict[int, int]:
    counts: dict[int, int] = {}
    for node in topological(network.output):
        if node.op == "attention":
            counts[node["window"]] = counts.get(node["window"], 0) + 1
    return counts


def _rope_bases(model: ModelFile, network: Network) -> tuple[float, ...]:
    """What the file says, or, for an architecture with a table of its own, what its two fastest frequencies say."""
    tables = [table.astype(float) for table in network.hyper.rope if len(table) > 1]
    settings = model.metadata.get("rope_parameters") or {}
    said = (
        model.metadata.get(f"{model.architecture}.rope.freq_base")
        or model.metadata.get("rope_theta")
        or (isinstance(settings, dict) and settings.get("rope_theta"))
    )
    if said and len(tables) == 1:
        return (float(said),)
    return tuple(float(f"{(table[0] / table[1]) ** len(table):.5g}") for table in tables)  # as exact as float32 allows


def _rope_scaling(model: ModelFile) -> str | None:
    if "rope_freqs.weight" in model.tensors:
        return "llama3 (rope_freqs)"
    if model.kind == "gguf":
        scaling = model.metadata.get(f"{model.architecture}.rope.scaling.type")
        factor = model.metadata.get(f"{model.architecture}.rope.scaling.factor")
        return f"{scaling} x{factor:g}" if scaling not in (None, "none") and factor else None
    settings: Any = model.metadata.get("rope_parameters") or model.metadata.get("rope_scaling")
    if not isinstance(settings, dict):
        return None
    settings = settings.get("full_attention", settings)
    kind = settings.get("rope_type", settings.get("type", "default"))
    return None if kind == "default" else f"{kind} x{settings.get('factor', 1):g}"


def _has_template(model: ModelFile) -> bool:
    try:
        return ChatTemplate.from_model(model) is not None
    except SixfoldError:  # there is one, and it does not compile; loading the model will say so
        return True


def _size_on_disk(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return path.stat().st_size


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
