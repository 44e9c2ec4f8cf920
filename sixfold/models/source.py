"""One way to read hyperparameters and tensors, whether the file is a GGUF or a Hugging Face directory.

Owns: the two naming schemes. Must not know: any one architecture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sixfold.errors import ModelFileError, UnsupportedModelError
from sixfold.models.network import Hyperparameters, Weight
from sixfold.models.rope import rope_table
from sixfold.weights.model_file import ModelFile
from sixfold.weights.tensor import Tensor

# canonical name: (GGUF key after the architecture, Hugging Face key)
KEYS = {
    "layers": ("block_count", "num_hidden_layers"),
    "context": ("context_length", "max_position_embeddings"),
    "hidden": ("embedding_length", "hidden_size"),
    "intermediate": ("feed_forward_length", "intermediate_size"),
    "query_heads": ("attention.head_count", "num_attention_heads"),
    "kv_heads": ("attention.head_count_kv", "num_key_value_heads"),
    "head_size": ("attention.key_length", "head_dim"),
    "epsilon": ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    "window": ("attention.sliding_window", "sliding_window"),
    "rope_base": ("rope.freq_base", "rope_theta"),
}

HF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
# Tensors that hold nothing the network needs: buffers, and the other modalities of a model whose text part we run.
_IGNORED = re.compile(r"(rotary_emb\.inv_freq|^rope_freqs\.weight)$|^(vision_tower|multi_modal_projector)\.")

# A layer has few keys and values per token; far more than any model has is a lie in the file.
_LIMITS = {"layers": 1024, "context": 1 << 27, "hidden": 1 << 20, "intermediate": 1 << 22, "query_heads": 1 << 14,
           "kv_heads": 1 << 14, "head_size": 512, "window": 1 << 27}  # fmt: skip


class Source:
    """``hf_names`` overrides or adds to the common Hugging Face names where an architecture differs."""

    def __init__(self, model: ModelFile, hf_names: Mapping[str, str] | None = None) -> None:
        self.model = model
        self.gguf = model.kind == "gguf"
        self._tensors = {}
        names = HF_NAMES | dict(hf_names or {})
        for name, tensor in model.tensors.items():
            if not _IGNORED.search(name):
                self._tensors[name if self.gguf else _canonical(name, names)] = tensor
        self.weights: dict[str, Weight] = {}

    def setting(self, gguf_key: str, hf_key: str, default: Any = None) -> Any:
        """A metadata value by either name; ``default`` when absent or null."""
        if self.gguf:
            value = self.model.metadata.get(f"{self.model.architecture}.{gguf_key}")
        else:
            value = self.model.metadata.get(hf_key)
        return default if value is None else value

    def number(self, name: str, default: float | None = None) -> float:
        """A number of :data:`KEYS`. Raises :class:`ModelFileError` when it is missing, not a number, or absurd."""
        gguf_key, hf_key = KEYS[name]
        value = self.setting(gguf_key, hf_key, default)
        where = f"{self.model.architecture}.{gguf_key}" if self.gguf else hf_key
        if isinstance(value, (list, np.ndarray)) and len(value) and all(v == value[0] for v in value):
            value = value[0]  # one value a layer, all the same
        if isinstance(value, (list, np.ndarray)):
            raise UnsupportedModelError(
                f"{where} differs from layer to layer", cause="Sixfold runs layers of one shape", remedy=_OTHER_MODEL
            )
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise ModelFileError(
                f"The model's metadata has no usable {where}", cause=f"found {value!r}", remedy=_CONVERT_AGAIN
            )
        if not 0 < float(value) <= _LIMITS.get(name, float("inf")):
            raise ModelFileError(
                f"{where}={value!r} is out of range", cause="no such model exists", remedy=_CONVERT_AGAIN
            )
        return float(value)

    def integer(self, name: str, default: int | None = None) -> int:
        return int(self.number(name, default))

    def hyperparameters(self, rope: tuple[np.ndarray, ...] | None = None) -> Hyperparameters:
        """The common sizes; one rope table from the metadata unless the architecture brings its own."""
        heads = self.integer("query_heads")
        head_size = self.integer("head_size", self.integer("hidden") // heads)
        kv_heads = self.integer("kv_heads", heads)
        if heads % kv_heads or head_size % 16:
            raise UnsupportedModelError(
                f"{heads} query heads, {kv_heads} KV heads of {head_size} can not be run",
                cause="query heads must be a multiple of KV heads, and the head size a multiple of 16",
                remedy=_OTHER_MODEL,
            )
        return Hyperparameters(
            hidden=self.integer("hidden"),
            layers=self.integer("layers"),
            query_heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            intermediate=self.integer("intermediate"),
            vocabulary=self.tensor("token_embd.weight").shape[0],
            context=self.integer("context"),
            epsilon=self.number("epsilon"),
            rope=rope or (rope_table(self, head_size, self.number("rope_base", 10000.0)),),
        )

    def tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise ModelFileError(
                f"The model has no tensor {name!r}", cause="its architecture needs it", remedy=_CONVERT_AGAIN
            )
        return self._tensors[name]

    def raw(self, name: str) -> Tensor | None:
        """A tensor by the name it has in the file, also one that is no weight of the network."""
        return self.model.tensors.get(name)

    def has(self, name: str) -> bool:
        return name in self._tensors

    def use(self, name: str, *, row_order: np.ndarray | None = None, offset: float = 0.0) -> str:
        """Takes a tensor into the network; returns its canonical name."""
        self.weights[name] = Weight(self.tensor(name), row_order, offset)
        return name

    def optional(self, name: str, **how: Any) -> str | None:
        return self.use(name, **how) if self.has(name) else None

    def check_all_used(self) -> None:
        """Raises :class:`UnsupportedModelError` if the file holds tensors that the network would silently ignore."""
        left = sorted(set(self._tensors) - set(self.weights))
        if left:
            raise UnsupportedModelError(
                f"The model has tensors that {self.model.architecture!r} does not use: {', '.join(left[:5])}",
                cause="ignoring them would give wrong results",
                remedy="Use a plain model of this architecture, without adapters or extra heads",
            )


_CONVERT_AGAIN = "Convert or download the model again"
_OTHER_MODEL = "Use another model"


def _canonical(name: str, names: Mapping[str, str]) -> str:
    name = re.sub(r"^(model\.)?language_model\.(model\.)?", "model.", name)
    stem, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem):
        return f"blk.{match[1]}.{names.get(match[2], match[2])}.{kind}"
    return f"{names.get(stem, stem)}.{kind}"
