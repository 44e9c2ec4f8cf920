"""Sixfold: one LLM inference framework for the machines you already have.

    from sixfold import LLM, SamplingParams

    llm = LLM("smollm2")
    for output in llm.generate(["The sea is"], SamplingParams(max_tokens=20)):
        print(output.outputs[0].text)

Names are loaded when they are first used, so that ``import sixfold`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sixfold.config import EngineConfig, ServerConfig
    from sixfold.engine.async_engine import AsyncEngine
    from sixfold.engine.beam_search import BeamSearchParams
    from sixfold.engine.llm import LLM
    from sixfold.errors import SixfoldError
    from sixfold.types import CompletionOutput, RequestOutput, SamplingParams, StructuredOutputsParams

__version__ = "0.1.0"

_HOMES = {
    "LLM": "sixfold.engine.llm",
    "AsyncEngine": "sixfold.engine.async_engine",
    "SamplingParams": "sixfold.types",
    "StructuredOutputsParams": "sixfold.types",
    "BeamSearchParams": "sixfold.engine.beam_search",
    "RequestOutput": "sixfold.types",
    "CompletionOutput": "sixfold.types",
    "EngineConfig": "sixfold.config",
    "ServerConfig": "sixfold.config",
    "SixfoldError": "sixfold.errors",
}

__all__ = [
    "LLM",
    "AsyncEngine",
    "BeamSearchParams",
    "CompletionOutput",
    "EngineConfig",
    "RequestOutput",
    "SamplingParams",
    "ServerConfig",
    "SixfoldError",
    "StructuredOutputsParams",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sixfold' has no attribute {name!r}")
