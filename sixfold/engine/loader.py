"""From settings to an engine that is ready to step: the one place that puts the parts together.

Owns: the order of loading and the size of the KV memory. Must not know: what the parts do inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sixfold import store
from sixfold.cache import open_tier
from sixfold.compile.adapter import pack_adapter
from sixfold.compile.plan import Plan, build
from sixfold.config import EngineConfig
from sixfold.engine.chat_template import ChatTemplate
from sixfold.engine.core import EngineCore, StepListener
from sixfold.engine.key_centres import key_centres
from sixfold.engine.kv_cache import pages_for
from sixfold.engine.lora import Adapters, Content
from sixfold.engine.memory import free_memory
from sixfold.engine.prefix_key import PrefixRoot
from sixfold.engine.speculation import speculation
from sixfold.engine.tokenizer import Tokenizer
from sixfold.errors import ConfigError
from sixfold.runtime.kv_format import exact_bytes, layer_formats, page_bytes
from sixfold.runtime.native import NativeExecutor, native_adapter
from sixfold.types import ReuseContext
from sixfold.weights.model_file import open_model
from sixfold.weights.peft import read_adapter


@dataclass(frozen=True)
class LoadedEngine:
    name: str  # what the model was asked for by
    core: EngineCore
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None  # None for a base model


def load_engine(config: EngineConfig, listener: StepListener | None = None) -> LoadedEngine:
    """Loads a model that is on this disk (``store.pull`` fetches one). Takes seconds.

    Raises ModelNotFoundError, ModelFileError, UnsupportedModelError, PlanError and ConfigError.
    """
    model = open_model(store.resolve(config.model).path)
    try:
        with ThreadPoolExecutor(1) as pool:  # a cached plan is hashed, without the GIL, while the tokenizer is built
            building = pool.submit(build, model, cache=config.plan_cache)
            tokenizer = Tokenizer.from_model(model)
            template = ChatTemplate.from_model(model)
        plan = building.result()
    finally:
        model.close()
    max_model_len = _context(plan, config)
    executor = open_executor(plan, tokenizer, config, max_model_len)
    adapters = Adapters(executor, lambda path: read_native(path, plan), config.max_loras)
    for name, path in config.lora.items():
        adapters.load(name, Path(path))
    core = EngineCore(
        executor,
        tokenizer,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        seed=config.seed,
        prefix_root=_prefix_root(model.digest, executor) if config.prefix_cache else None,
        tier=open_tier(disk=config.kv_disk, disk_bytes=config.kv_disk_bytes, redis=config.kv_redis, s3=config.kv_s3),
        reuse=ReuseContext.parse(config.reuse),
        speculation=speculation(config.speculation),
        listener=listener,
        adapters=adapters,
    )
    return LoadedEngine(config.model, core, tokenizer, template)


def open_executor(plan: Plan, tokenizer: Tokenizer, config: EngineConfig, max_model_len: int) -> NativeExecutor:
    sizes = plan.meta["sizes"]
    centred = "int4" in layer_formats(config.kv_format, int(sizes["layers"]))
    return NativeExecutor(
        plan,
        num_pages=num_pages(sizes, config, max_model_len),
        max_tokens=config.max_num_batched_tokens,
        threads=config.threads,
        isa=config.isa,
        kv_format=config.kv_format,
        key_centres=key_centres(plan, tokenizer, isa=config.isa, threads=config.threads) if centred else None,
        max_sequences=config.max_num_seqs,
    )


def read_native(path: Path, plan: Plan) -> Content:
    """An adapter, ready for the executor of this plan. Raises ModelFileError and UnsupportedModelError."""
    file = read_adapter(path)
    native = native_adapter(pack_adapter(file, plan))
    return Content(file.digest, file.rank, native.bytes, native)


def _prefix_root(digest: str, executor: NativeExecutor) -> PrefixRoot:
    return PrefixRoot(model=digest, kv_format=executor.kv_format, numerics=executor.numerics)


def _context(plan: Plan, config: EngineConfig) -> int:
    if config.max_model_len is not None and config.max_model_len > plan.context:
        raise ConfigError(
            f"max_model_len={config.max_model_len} is too long",
            cause=f"the model was trained for {plan.context} tokens",
            remedy=f"Use at most {plan.context}, or leave it out",
            param="max_model_len",
        )
    return config.max_model_len or plan.context


def num_pages(sizes: Mapping[str, Any], config: EngineConfig, max_model_len: int) -> int:
    """As many pages as kv_memory holds, and no more than max_num_seqs full sequences can use. ``sizes``: layers,
    kv_heads and head_size of the model."""
    memory = config.kv_memory if config.kv_memory is not None else free_memory() // 4
    size = page_bytes(sizes, config.kv_format)
    exact = exact_bytes(
        sizes, config.kv_format, sequences=config.max_num_seqs, step_tokens=config.max_num_batched_tokens
    )
    if memory < exact + size:
        beside = f", and the newest tokens of {config.max_num_seqs} sequences {exact} in float16" if exact else ""
        raise ConfigError(
            f"{memory} bytes of KV memory hold not a single page",
            cause=f"a page of this model takes {size} bytes{beside}",
            remedy="Raise kv_memory, or free memory on this machine" + (", or lower max_num_seqs" if exact else ""),
            param="kv_memory",
        )
    return min((memory - exact) // size, config.max_num_seqs * pages_for(max_model_len))
