"""Qwen 3: Llama's layers with an rms norm on every query and key head (Yang et al. 2025)."""

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
    x = blocks.pre_norm_layers(source, hyper, x, windows=windows, head_norms=True)
    output = blocks.logits(source, hyper, x)
    source.check_all_used()
    return Network("qwen3", hyper, output, source.weights)
