from __future__ import annotations

import pytest

from sixfold.engine.llm import LLM
from sixfold.engine.loader import LoadedEngine
from sixfold.errors import ConfigError, ContextLengthError, InvalidRequestError, TemplateError
from sixfold.types import SamplingParams
from tests.engine.test_core import alone, same
from tests.fakes import make_core

PARAMS = SamplingParams(max_tokens=12, ignore_eos=True, seed=1)


class FakeTemplate:
    def render(self, messages, *, add_generation_prompt=True, tools=None):
        turns = "".join(f"{message['role']}:{message['content']};" for message in messages)
        return turns + "assistant:" * add_generation_prompt


def make_llm(chat_template=None, **options):
    core = make_core(**options)
    return LLM.from_loaded(LoadedEngine("fake", core, core.tokenizer, chat_template))


def test_outputs_come_whole_and_in_order():
    prompts = ["one", {"prompt_token_ids": [1, 2, 3]}, {"prompt": "three"}, "x" * 200]
    with make_llm(max_num_seqs=2) as llm:
        outputs = llm.generate(prompts, PARAMS)
    tokens = [list(b"one"), [1, 2, 3], list(b"three"), list(b"x" * 200)]
    assert [list(output.prompt_token_ids) for output in outputs] == tokens
    assert [output.prompt for output in outputs] == ["one", None, "three", "x" * 200]
    assert all(same(output, alone(ids, PARAMS)) for output, ids in zip(outputs, tokens, strict=True))
    assert all(output.finished for output in outputs)


def test_one_prompt_and_parameters_for_each():
    llm = make_llm()
    assert len(llm.generate("one", PARAMS)) == 1
    each = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (2, 5)]
    assert [len(output.outputs[0].token_ids) for output in llm.generate(["a", "b"], each)] == [2, 5]
    with pytest.raises(InvalidRequestError, match="2 prompts and 1"):
        llm.generate(["a", "b"], each[:1])
    assert llm.generate([], PARAMS) == []


def test_a_progress_bar_can_be_shown(capsys):
    assert len(make_llm().generate(["a", "b"], PARAMS, use_tqdm=True)) == 2
    assert "prompts" in capsys.readouterr().out


def test_nothing_runs_when_one_prompt_is_bad():
    llm = make_llm()
    with pytest.raises(ContextLengthError):
        llm.generate(["fine", "x" * 2000], PARAMS)
    with pytest.raises(InvalidRequestError, match="prompt_token_ids"):
        llm.generate([["not", "a", "prompt"]], PARAMS)
    assert llm._core.stats().requests == 0


def test_chat_renders_one_conversation_or_several():
    llm = make_llm(FakeTemplate())
    message = {"role": "user", "content": "hi"}
    (output,) = llm.chat([message], PARAMS)
    assert output.prompt == "user:hi;assistant:"
    assert same(output, alone(b"user:hi;assistant:", PARAMS))
    assert [o.prompt for o in llm.chat([[message], [message] * 2], PARAMS, add_generation_prompt=False)] == [
        "user:hi;",
        "user:hi;user:hi;",
    ]
    with pytest.raises(TemplateError, match="no chat template"):
        make_llm().chat([message], PARAMS)


def test_streams_may_be_read_in_turns_and_left():
    llm = make_llm()
    whole = [alone(text.encode(), PARAMS).outputs[0] for text in ("one", "two")]
    one, two = llm.stream("one", PARAMS), llm.stream("two", PARAMS)
    texts = ["", ""]
    for _ in range(12):
        texts[0] += next(one).outputs[0].text
        texts[1] += next(two).outputs[0].text
    assert texts == [output.text for output in whole]
    assert list(one) == []
    left = llm.stream("one", PARAMS)
    next(left)
    left.close()
    assert llm._core.stats().kv_pages_used == 0


def test_unknown_options_are_named():
    with pytest.raises(ConfigError, match="gpu_memory_utilization"):
        LLM("smollm2", gpu_memory_utilization=0.9)


def test_reused_context():
    llm = make_llm()
    one, two = ([(at * at * step) % 256 for at in range(1, 101)] for step in (3, 7))
    llm.generate({"prompt_token_ids": one + two}, PARAMS)
    ask = {"prompt_token_ids": [*two, *one, 1]}
    (plain,) = llm.generate({**ask, "cache_salt": "other"}, PARAMS)
    (output,) = llm.generate({**ask, "reuse_context": {"recompute": 0.25}}, PARAMS)
    assert same(output, plain)
    assert (plain.num_reused_tokens, output.num_reused_tokens, output.num_recomputed_tokens) == (None, 150, 50)
    with pytest.raises(InvalidRequestError, match="reuse_context"):
        llm.generate({**ask, "reuse_context": "often"}, PARAMS)


def test_known_prefixes_and_salts():
    llm = make_llm()
    prompt = {"prompt_token_ids": [7] * 40}

    def cached(**fields):
        (output,) = llm.generate({**prompt, **fields}, PARAMS)
        assert same(output, alone([7] * 40, PARAMS))
        return output.num_cached_tokens

    assert [cached(), cached(), cached(cache_salt="a"), cached(cache_salt="a")] == [0, 39, 0, 39]
    llm.reset_prefix_cache()
    assert cached(cache_salt="a") == 0
    with pytest.raises(InvalidRequestError, match="cache_salt"):
        llm.generate({**prompt, "cache_salt": ""}, PARAMS)
    off = make_llm(prefix_cache=False)
    assert [off.generate(prompt, PARAMS)[0].num_cached_tokens for _ in range(2)] == [None, None]
