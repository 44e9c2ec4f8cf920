"""What comes out follows what was asked for, and is the same in any company, with and without jump-ahead."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sixfold.compile import build
from sixfold.engine.collect import Collector
from sixfold.engine.core import EngineCore
from sixfold.engine.grammar import Grammars
from sixfold.engine.tokenizer import Tokenizer
from sixfold.errors import InvalidRequestError
from sixfold.runtime.native import NativeExecutor
from sixfold.types import CompletionOutput, RequestOutput, SamplingParams, StructuredOutputsParams
from sixfold.weights.model_file import ModelFile
from tests.engine.grammar.schemas import schemas
from tests.fakes import make_core

Ask = tuple[list[int], SamplingParams]


def run(core: EngineCore, asks: list[Ask], arrivals: list[int] | None = None, *, jump_ahead: bool = True) -> list[Any]:
    core.grammars.jump_ahead = jump_ahead
    collectors = [Collector() for _ in asks]
    waiting = list(enumerate(asks))
    step = 0
    while waiting or core.has_work:
        for at, (ids, params) in list(waiting):
            if arrivals is None or arrivals[at] <= step:
                core.add(core.limits.accept(str(at), ids, params))
                waiting.remove((at, (ids, params)))
        for output in core.step():
            collectors[int(output.request_id)].add(output)
        core.cache.check_integrity()
        step += 1
    return [collector.result() for collector in collectors]


def one(core: EngineCore, demand: StructuredOutputsParams, **fields: Any) -> list[CompletionOutput]:
    params = SamplingParams(structured_outputs=demand, **{"max_tokens": 600, "seed": 1, **fields})
    (output,) = run(core, [([1, 2, 3], params)])
    return list(output.outputs)


@settings(max_examples=80, deadline=None)
@given(schema=schemas(), seed=st.integers(0, 99))
def test_what_is_finished_is_valid(schema: dict[str, Any], seed: int) -> None:
    core = make_core()
    try:
        outputs = one(core, StructuredOutputsParams(json=schema), n=2, seed=seed, max_tokens=300)
    except InvalidRequestError as error:
        assert "nsatisfiable" in str(error) or "Unable to determine" in str(error), str(error)
        return
    for output in outputs:
        assert output.finish_reason in ("stop", "length")
        if output.finish_reason == "stop":
            value = json.loads(output.text.encode("latin-1"))
            jsonschema.validate(
                value, schema, jsonschema.Draft202012Validator,
                format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
            )  # fmt: skip


@pytest.mark.parametrize(
    "regex",
    [r"\d{3}-\d{4}", r"^(yes|no)$", r"[a-c]+x?", r"(ab|a)(bc|c)", r"(?i)hello", r"[^a-z]{3}", r"a.c", r"\s\d", r""],
)  # fmt: skip
def test_a_regex_is_matched_in_full(regex: str) -> None:
    core = make_core()
    for output in one(core, StructuredOutputsParams(regex=regex), n=6, max_tokens=200):
        assert output.finish_reason == "stop"
        assert re.fullmatch(regex, output.text.encode("latin-1").decode()), output.text


def test_choices_and_grammars() -> None:
    core = make_core()
    choices = ("yes", "no", "a.b|c", "yes, but", "日本")
    found = {
        o.text.encode("latin-1").decode()
        for o in one(core, StructuredOutputsParams(choice=choices), n=30, temperature=20.0)
    }
    assert found <= set(choices) and len(found) > 2
    lark = 'start: "(" NUM ("," NUM)* ")"\nNUM: /[0-9]{1,3}/'
    gbnf = 'root ::= "(" num ("," num)* ")"\nnum ::= [0-9] [0-9]? [0-9]?'
    for grammar in (lark, gbnf):
        for output in one(core, StructuredOutputsParams(grammar=grammar), n=4, max_tokens=400):
            assert output.finish_reason == "stop" and re.fullmatch(r"\(\d{1,3}(,\d{1,3})*\)", output.text)


def test_json_object_and_how_it_is_written() -> None:
    core = make_core()
    schema = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": [1, 2]}}, "required": ["a", "b"],
              "additionalProperties": False}  # fmt: skip
    for options, text in (
        ({}, '{"a": 1, "b": [1, 2]}'),
        ({"disable_any_whitespace": True}, '{"a":1,"b":[1,2]}'),
    ):
        (output,) = one(core, StructuredOutputsParams(json=schema, **options))
        assert (output.text, output.finish_reason) == (text, "stop")
    loose = one(core, StructuredOutputsParams(json=schema, whitespace_pattern=r"[ \n]{0,2}"), n=8)
    assert len({output.text for output in loose}) > 1
    assert all(json.loads(output.text) == {"a": 1, "b": [1, 2]} for output in loose)
    del schema["additionalProperties"]
    closed = StructuredOutputsParams(json=schema, disable_additional_properties=True)
    assert one(core, closed)[0].text == '{"a": 1, "b": [1, 2]}'
    (output,) = one(core, StructuredOutputsParams(json_object=True), max_tokens=900)
    assert output.text.startswith("{")


OBJECT = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["first kind", "first other", "third"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 999},
    },
    "required": ["title", "kind", "count"],
    "additionalProperties": False,
}


def asks(count: int, *, source: random.Random, vocab: int) -> list[Ask]:
    """Of every kind, with everything that could interfere."""
    demands = [
        StructuredOutputsParams(json=OBJECT), None, StructuredOutputsParams(regex=r"[a-f]{2,20}(, [a-f]{2,20}){3}"),
        StructuredOutputsParams(choice=["one way", "one way or another", "no way"]),
    ]  # fmt: skip
    return [
        (
            [source.randrange(3, vocab) for _ in range(source.randrange(1, 60))],
            SamplingParams(
                structured_outputs=demands[i % 4], temperature=(0.0, 1.0, 1.5)[i % 3], max_tokens=(70, 9)[i % 5 == 4],
                seed=i, n=1 + i % 2, logprobs=(None, 0, 2)[i % 3], min_tokens=(0, 4)[i % 2], ignore_eos=i % 3 == 0,
                repetition_penalty=(1.0, 1.3)[i % 2], stop=("e",) if i % 7 == 6 else (),
                bad_words=("ab",) if i % 4 == 2 else (),
            ),
        )
        for i in range(count)
    ]  # fmt: skip


def essence(output: RequestOutput) -> object:
    return [dataclasses.astuple(choice) for choice in output.outputs]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 99), pages=st.integers(12, 40), budget=st.integers(4, 80), jump_ahead=st.booleans(),
    cached=st.booleans(),
)  # fmt: skip
def test_the_same_in_any_company(seed: int, pages: int, budget: int, jump_ahead: bool, cached: bool) -> None:
    source = random.Random(seed)
    asked = asks(8, source=source, vocab=250)
    wanted = [run(make_core(256, prefix_cache=False), [ask], jump_ahead=False)[0] for ask in asked]
    crowd = make_core(pages, max_num_batched_tokens=budget, prefix_cache=cached)
    got = run(crowd, asked, [source.randrange(15) for _ in asked], jump_ahead=jump_ahead)
    assert [essence(output) for output in got] == [essence(output) for output in wanted]
    assert (crowd.stats().jumped_tokens > 0) == jump_ahead


def smollm2_core(model: ModelFile, **options: Any) -> EngineCore:
    plan = build(model)
    budget = options.pop("budget", 512)
    executor = NativeExecutor(plan, num_pages=options.pop("pages", 300), max_tokens=budget, threads=2)
    return EngineCore(
        executor, Tokenizer.from_model(model), max_model_len=1024, max_num_batched_tokens=budget, **options
    )  # fmt: skip


@pytest.mark.model
def test_smollm2_in_a_crowd_with_preemption_and_jumps(smollm2: ModelFile) -> None:
    asked = asks(9, source=random.Random(5), vocab=49_000)
    plain = smollm2_core(smollm2)
    wanted = [run(plain, [ask], jump_ahead=False)[0] for ask in asked]
    crowd = smollm2_core(smollm2, pages=20, budget=40)
    got = run(crowd, asked, [index % 4 for index in range(len(asked))])
    assert [essence(output) for output in got] == [essence(output) for output in wanted]
    assert crowd.scheduler.preemptions > 0 and crowd.stats().jumped_tokens > 20
    for output in got[::4]:
        for choice in output.outputs:
            if choice.finish_reason == "stop" and choice.stop_reason is None:
                jsonschema.validate(json.loads(choice.text), OBJECT)


@pytest.mark.model
def test_smollm2_at_a_high_temperature_stays_valid(smollm2: ModelFile) -> None:
    core = smollm2_core(smollm2)
    people = {"type": "array", "items": OBJECT, "minItems": 1, "maxItems": 2}
    date = {"format": "date", "type": "string"}
    nested = {"type": "object", "properties": {"people": people, "när": date}, "required": ["people", "när"]}
    outputs = one(core, StructuredOutputsParams(json=nested), temperature=2.0, n=8, max_tokens=250)
    finished = [output for output in outputs if output.finish_reason == "stop"]
    assert len(finished) >= 4
    for output in finished:
        jsonschema.validate(json.loads(output.text), nested)


def test_truncation_says_so_and_usage_counts_jumped_tokens() -> None:
    core = make_core()
    schema = {"const": "a long text that is known before"}
    (whole,) = one(core, StructuredOutputsParams(json=schema))
    assert whole.finish_reason == "stop" and len(whole.token_ids) == len(whole.text)
    (cut,) = one(core, StructuredOutputsParams(json=schema), max_tokens=7)
    assert (cut.text, cut.finish_reason, len(cut.token_ids)) == (whole.text[:7], "length", 7)
    stats = core.stats()
    assert stats.generation_tokens == len(whole.token_ids) + 7 and stats.jumped_tokens > len(whole.token_ids)
    (exact,) = one(core, StructuredOutputsParams(json=schema), max_tokens=len(whole.token_ids))
    assert exact.finish_reason == "stop"


def test_stop_strings_and_stop_ids_end_a_jump() -> None:
    core = make_core()
    demand = StructuredOutputsParams(json={"const": "a long text that is known before"})
    (cut,) = one(core, demand, stop=("text th",))
    assert (cut.text, cut.finish_reason, cut.stop_reason) == ('"a long ', "stop", "text th")
    (cut,) = one(core, demand, stop_token_ids=(ord("x"),))
    assert (cut.text, cut.finish_reason, cut.stop_reason) == ('"a long te', "stop", ord("x"))


def test_log_probabilities_are_of_what_is_allowed() -> None:
    core = make_core()
    (output,) = one(core, StructuredOutputsParams(regex="[ab]c"), logprobs=5)
    assert output.logprobs is not None
    first, second = output.logprobs
    assert {token.token_id for token in first.top} == {ord("a"), ord("b")}
    assert sum(2.718281828459045**token.logprob for token in first.top) == pytest.approx(1.0)
    assert (second.chosen.logprob, second.chosen.rank, len(second.top)) == (0.0, 1, 1)


def test_a_demand_that_contradicts_another_ends_with_an_error_of_its_own() -> None:
    core = make_core()
    bad = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["abc"]), bad_words=("b",), max_tokens=9)
    good = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["abc"]), max_tokens=9)
    broken, fine = run(core, [([1], bad), ([1], good)])
    assert broken.outputs[0].finish_reason == "error" and "bad_words" in str(broken.outputs[0].stop_reason)
    assert fine.outputs[0].text == "abc"


def test_a_grammar_whose_lexer_is_full_is_learnt_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies share what they learn up to a limit; a sequence that meets it goes on as if it were alone."""
    monkeypatch.setitem(__import__("sixfold.engine.grammar.compiler", fromlist=["x"])._LIMITS, "max_lexer_states", 80)
    core = make_core()
    demand = StructuredOutputsParams(regex=r"(cat|dog|bird|[0-9]{1,4}|[x-z]{2}w){6}")
    fresh = []
    monkeypatch.setattr(Grammars, "fresh", lambda self, *of, made=Grammars.fresh: fresh.append(1) or made(self, *of))
    outputs = [one(core, demand, seed=seed)[0] for seed in range(12)]
    shared = len(fresh)
    again = [one(make_core(), demand, seed=seed)[0] for seed in range(12)]
    assert shared and len(fresh) == shared, "each has room alone"
    assert outputs == again and {output.finish_reason for output in outputs} == {"stop"}
