"""Llama, and what is built like it: SmolLM2, Mistral, Llama 3 with its rope scaling (Touvron et al. 2023)."""

from __future__ import annotations

from sixfold.models import blocks, graph
from sixfold.models.network import Network
from sixfold.models.source import Source
from sixfold.weights.model_file import ModelFile


def build(model: ModelFile) -> Network:
    source = Source(model)
    hyper = source.hyperparameters()
    x = graph.embed(source.use("token_embd.weight"))
    windows = blocks.layer_windows(source, hyper.layers)
    # GGUF converters reorder Llama's Q and K so that rope pairs are neighbours.
    x = blocks.pre_norm_layers(source, hyper, x, windows=windows, interleaved=source.gguf)
    output = blocks.logits(source, hyper, x)
    source.check_all_used()
    return Network("llama", hyper, output, source.weights)
