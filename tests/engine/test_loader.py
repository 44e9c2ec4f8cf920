from __future__ import annotations

import pytest

from sixfold.config import EngineConfig
from sixfold.engine.llm import LLM
from sixfold.engine.loader import load_engine
from sixfold.engine.memory import free_memory
from sixfold.errors import ConfigError, ModelNotFoundError
from sixfold.types import SamplingParams
from tests.tiny_models import write_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_gguf("llama", tmp_path_factory.mktemp("models") / "tiny.gguf", "Q4_1"))


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SIXFOLD_HOME", str(tmp_path))


def test_a_model_file_becomes_an_engine_that_generates(model):
    with LLM(model, max_num_seqs=2, kv_memory=1 << 20) as llm:
        (output,) = llm.generate({"prompt_token_ids": [1, 2, 3]}, SamplingParams(max_tokens=4, ignore_eos=True))
    assert len(output.outputs[0].token_ids) == 4


def test_kv_memory_bounds_the_pages_and_the_seats_do_too(model):
    small = load_engine(EngineConfig(model=model, kv_memory=1 << 16)).core
    large = load_engine(EngineConfig(model=model, kv_memory=1 << 30, max_num_seqs=2, max_model_len=64)).core
    assert 1 <= small.cache.num_pages < 64 * large.cache.num_pages
    assert large.cache.num_pages == 2 * 4
    assert large.limits.max_model_len == 64


def test_the_prefix_cache_is_on_unless_it_is_switched_off(model):
    prompt, params = {"prompt_token_ids": list(range(50))}, SamplingParams(max_tokens=1, ignore_eos=True)
    for options, wanted in (({}, [0, 49]), ({"prefix_cache": False}, [None, None])):
        with LLM(model, max_num_seqs=2, kv_memory=1 << 20, **options) as llm:
            assert [llm.generate(prompt, params)[0].num_cached_tokens for _ in range(2)] == wanted


@pytest.mark.parametrize(("options", "says"), [({"max_model_len": 1 << 30}, "trained for"), ({"kv_memory": 1}, "page")])
def test_what_does_not_fit_says_which_option_to_change(model, options, says):
    with pytest.raises(ConfigError, match=says) as raised:
        load_engine(EngineConfig(model=model, **options))
    assert raised.value.param == next(iter(options))


def test_an_unknown_model_is_named():
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        load_engine(EngineConfig(model="no-such-model"))


def test_free_memory_is_a_plausible_number():
    assert 1 << 20 < free_memory() < 1 << 50
