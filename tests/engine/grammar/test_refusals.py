"""What can not be followed is refused before it runs, by name and place; what is hostile stays within its bounds."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Any

import numpy as np
import pytest

from sixfold.engine.grammar import GrammarMatcher, Grammars, compiler
from sixfold.engine.grammar import schema as schema_module
from sixfold.engine.grammar.matcher import Ends
from sixfold.engine.grammar.schema import prepare
from sixfold.errors import InvalidRequestError, OverloadedError
from sixfold.types import SamplingParams, StructuredOutputsParams
from tests.fakes import VOCAB, FakeTokenizer, make_core


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(FakeTokenizer(), VOCAB)


def refusal(grammars: Grammars, **demand: Any) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        grammars.compile(StructuredOutputsParams(**demand))
    assert caught.value.param == "structured_outputs"
    return str(caught.value)


def under(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a/b": {"type": "array", "items": schema}}}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems at /properties/a~1b/items/uniqueItems"),
        ({"not": {}}, "keyword not at /properties/a~1b/items/not"),
        ({"if": {}, "then": {}}, "keyword if at"),
        ({"type": "object", "requried": ["a"]}, "keyword requried at"),
        ({"type": "string", "nullable": True}, "keyword nullable at"),
        ({"type": "string", "format": "color"}, "format with 'color' at /properties/a~1b/items/format"),
        ({"x-guidance": {"lenient": True}}, "keyword x-guidance at"),
        ({"$ref": "http://example.com/schema.json"}, "$ref 'http://example.com/schema.json' at"),
        ({"$ref": "file:///etc/passwd"}, "$ref 'file:///etc/passwd' at"),
        ({"$ref": "#/$defs/none"}, "/$defs/none"),
        ({"$dynamicRef": "#a"}, "$dynamicRef"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "string", "pattern": "(?=a)b"}, "at /properties/a~1b/items: regex parse error: (?=a)b"),
        ({"type": "strin"}, "at /properties/a~1b/items: Invalid type: strin"),
        ({"type": "integer", "multipleOf": 999_983}, "multipleOf with 999983 at"),
        ({"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]}, "multipleOf with 9967 at"),
        ({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1}, "min/maxProperties"),
        (5, "5 where a schema is expected at /properties/a~1b/items"),
    ],
)
def test_a_schema_is_refused_with_the_keyword_and_its_place(grammars: Grammars, schema: Any, said: str) -> None:
    assert said in refusal(grammars, json=under(schema))


@pytest.mark.parametrize(
    ("demand", "said"),
    [
        ({"json": "{"}, "not valid JSON"), ({"json": "[1]"}, "a list at /"), ({"regex": "(a"}, "unclosed group"),
        ({"json": "false"}, "schema is false"),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum (5) is greater than maximum (3)"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"grammar": "start: foo"}, "foo"), ({"grammar": "start: %json {}"}, "%json"), ({"choice": []}, "choice"),
        ({"choice": ["a", ""]}, "choice"), ({"grammar": 'root ::= "a'}, "grammar"),
        ({"regex": "a" * 600_000}, "too large"), ({"choice": ["a"] * 30_000}, "too large"),
        ({"json": "{}", "whitespace_pattern": "(" }, "whitespace"), ({"json": "[" * 100_000}, "not valid JSON"),
    ],
)  # fmt: skip
def test_other_demands_are_refused(grammars: Grammars, demand: dict[str, Any], said: str) -> None:
    assert said in refusal(grammars, **demand)


@pytest.mark.parametrize("given", [{}, {"json": {}, "regex": "a"}, {"json_object": False}])
def test_exactly_one_demand(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="exactly one"):
        StructuredOutputsParams(**given)


def test_what_excludes_itself_is_one_of() -> None:
    kinds = [{"type": "object", "properties": {"k": {"const": name}}, "required": ["k"]} for name in ("cat", "dog")]
    by_ref = {"oneOf": [{"$ref": "#/$defs/0"}, {"$ref": "#/$defs/1"}], "$defs": {"0": kinds[0], "1": kinds[1]},
              "discriminator": {"propertyName": "k"}}  # fmt: skip
    for schema in ({"oneOf": kinds}, by_ref, {"oneOf": [{"type": "string"}, {"type": "integer"}]}):
        assert "anyOf" in prepare(schema) and "oneOf" not in prepare(schema)
    for schema in (
        {"oneOf": [kinds[0], kinds[0]]}, {"oneOf": [{}, {"type": "string"}]}, {"oneOf": [{"const": 1}, {"const": 1.0}]},
        {"oneOf": [{"type": "object", "properties": {"k": {"const": "a"}}}, kinds[1]]},
    ):  # fmt: skip
        assert "oneOf" in prepare(schema)


def deep(levels: int) -> str:
    return '{"type":"array","items":' * levels + "{}" + "}" * levels


@pytest.mark.parametrize(
    "demand",
    [
        {"json": deep(99)}, {"json": deep(5_000)}, {"json": {"enum": [f"value {i}" for i in range(30_000)]}},
        {"regex": r"((a|a)*(a|a)*){1,50}b"}, {"regex": r"((((a{1,100}){1,100}){1,100}){1,100})"},
        {"regex": r".*a.{20}b"}, {"grammar": 'start: s\ns: "a" s "a" | "b" s "b" | s s | /./ | ""'},
        {"grammar": 'start: a\na: a a | /[a-z]/ | ""'}, {"json": {"type": "string", "minLength": 100_000}},
        {"json": {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(12)]}},
        {"json": {"$ref": "#"}}, {"json": {"type": "array", "minItems": 10**6}},
        {"json": {"$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(25)}
                  | {"d25": {"type": "object"}}, "$ref": "#/$defs/d0"}},
    ],
)  # fmt: skip
def test_hostile_demands_hold_up_nobody(demand: dict[str, Any]) -> None:
    """Refused, or followed for as long as it goes: a neighbour's tokens keep coming either way."""
    core = make_core(max_model_len=600)
    fine = SamplingParams(structured_outputs=StructuredOutputsParams(regex="[ab]{40}"), max_tokens=50, seed=1)
    hostile = SamplingParams(structured_outputs=StructuredOutputsParams(**demand), max_tokens=40, seed=1)
    with contextlib.suppress(InvalidRequestError):
        core.add(core.limits.accept("hostile", [1, 2], hostile))
    core.add(core.limits.accept("fine", [1, 2], fine))
    ends = {}
    for _ in range(200):
        for output in core.step():
            ends[output.request_id] = output.outputs[0].finish_reason
        if not core.has_work:
            break
    assert ends["fine"] == "stop" and ends.get("hostile", "stop") in ("stop", "length", "error")


def test_a_grammar_is_compiled_once_and_few_are_kept(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    demand = StructuredOutputsParams(json={"type": "integer"})
    assert grammars.compile(demand) is grammars.compile(StructuredOutputsParams(json={"type": "integer"}))
    for i in range(compiler.MAX_GRAMMARS + 5):
        grammars.compile(StructuredOutputsParams(choice=[f"c{i}"]))
    assert len(grammars._kept) == compiler.MAX_GRAMMARS
    refusal(grammars, regex="(")
    assert StructuredOutputsParams(regex="(") not in grammars._kept


async def test_a_slow_compilation_ends_its_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Grammars(FakeTokenizer(), VOCAB)
    release = threading.Event()
    real = slow._compile
    monkeypatch.setattr(compiler, "COMPILE_SECONDS", 0.05)
    monkeypatch.setattr(slow, "_compile", lambda demand: release.wait(5) and real(demand))
    with pytest.raises(InvalidRequestError, match="too complex"):
        await slow.compiled(StructuredOutputsParams(regex="a"))
    began = time.monotonic()
    with pytest.raises(InvalidRequestError, match="too complex"):
        await asyncio.to_thread(slow.compile, StructuredOutputsParams(regex="a"))
    assert time.monotonic() - began < 5
    release.set()
    assert (await asyncio.to_thread(slow.submit(StructuredOutputsParams(regex="a")).result)).source
    slow.close()


def test_a_grammar_that_fails_again_and_again_is_compiled_anew_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each of many choices, nor for each of their steps, for the others wait meanwhile."""
    monkeypatch.setitem(compiler._LIMITS, "max_lexer_states", 60)
    grammars = Grammars(FakeTokenizer(), VOCAB)
    grammar = grammars.compile(StructuredOutputsParams(regex=r"[a-z]*a[a-z]{12}b"))
    made, real = [], grammars._matcher
    monkeypatch.setattr(grammars, "_matcher", lambda source: made.append(source) or real(source))
    choices = [GrammarMatcher(grammar, Ends(), grammars) for _ in range(64)]
    row = np.zeros((VOCAB + 31) // 32, np.uint32)
    for choice in choices:
        grammars.fill(choice, row)
    for letter in "abaababbabaabbaaabab" * 3:
        for choice in choices:
            if choice.error is None:
                with contextlib.suppress(InvalidRequestError):
                    choice.accept(ord(letter))
                    grammars.fill(choice, row)
    assert all("can not be followed any further" in str(choice.error) for choice in choices)
    assert len(made) == 1


async def test_what_was_waited_for_is_found_though_many_others_came(monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = Grammars(FakeTokenizer(), VOCAB)
    demand = StructuredOutputsParams(regex="ab")
    held = await grammars.compiled(demand)
    for i in range(compiler.MAX_GRAMMARS + 1):
        await grammars.compiled(StructuredOutputsParams(choice=[f"c{i}"]))
    assert demand not in grammars._kept
    monkeypatch.setattr(grammars, "_compile", None)
    assert grammars.compile(demand) is held
    grammars.close()


async def test_what_is_under_way_stays_and_what_nobody_waits_for_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "MAX_GRAMMARS", 2)
    monkeypatch.setattr(compiler, "COMPILE_SECONDS", 5.0)
    grammars = Grammars(FakeTokenizer(), VOCAB)
    release = threading.Event()
    begun, real = [], grammars._compile
    monkeypatch.setattr(grammars, "_compile", lambda d: begun.append(d.regex) or (release.wait(5) and real(d)))
    demands = [StructuredOutputsParams(regex=f"a{i}") for i in range(6)]
    waits = [asyncio.create_task(grammars.compiled(demand)) for demand in demands]
    await asyncio.sleep(0)
    assert list(grammars._kept) == demands, "none of them is done"
    waits[4].cancel()
    await asyncio.wait([waits[4]])
    assert demands[4] not in grammars._kept
    monkeypatch.setattr(compiler, "COMPILE_SECONDS", 0.01)
    with pytest.raises(OverloadedError, match="others were compiled first"):
        await grammars.compiled(StructuredOutputsParams(regex="late"))
    release.set()
    made = await asyncio.gather(*waits[:4], waits[5])
    assert all(grammar.source for grammar in made) and sorted(begun) == ["a0", "a1", "a2", "a3", "a5"]
    assert not grammars._waiting
    grammars.close()


def chained(links: int) -> dict[str, Any]:
    """Two options that are compared by two properties, each of which is compared by two, and so on."""
    link = {f"{side}{i}": {"type": "object", "required": ["p", "q"],
                           "properties": {key: {"$ref": f"#/$defs/{side}{(i + 1) % links}"} for key in "pq"}}
            for side in "xy" for i in range(links)}  # fmt: skip
    return {"oneOf": [{"$ref": "#/$defs/x0"}, {"$ref": "#/$defs/y0"}], "$defs": link}


def test_comparing_the_options_of_one_of_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [{"const": f"{i}"} for i in range(65)]
    assert "anyOf" in prepare({"oneOf": many[:64]})
    with pytest.raises(InvalidRequestError, match="oneOf with 65 options at /items/oneOf"):
        prepare({"type": "array", "items": {"oneOf": many}})
    assert "oneOf" in prepare(chained(30)) and "oneOf" in prepare(chained(1)), "not seen to exclude each other"
    monkeypatch.setattr(schema_module, "MAX_COMPARED", 1_000)
    with pytest.raises(InvalidRequestError, match="too long to compare"):
        prepare({"oneOf": [{"$ref": f"#/$defs/{i}"} for i in range(3)],
                 "$defs": {str(i): {"enum": [f"{i} {j}" for j in range(400)]} for i in range(3)}})  # fmt: skip
