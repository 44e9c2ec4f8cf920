"""Qwen 2 and 2.5: Llama's layers with biases on Q, K and V (Yang et al. 2024)."""

from __future__ import annotations

from sixfold.models import blocks, graph
from sixfold.models.network import Network
from sixfold.models.source import Source
from sixfold.weights.model_file import ModelFile


def build(model: ModelFile) -> Network:
    source = Source(model)
    hyper = source.hyperparameters()
    x = graph.embed(source.use("token_embd.weight"))
    x = blocks.pre_norm_layers(source, hyper, x, windows=blocks.layer_windows(source, hyper.layers))
    output = blocks.logits(source, hyper, x)
    source.check_all_used()
    return Network("qwen2", hyper, output, source.weights)
