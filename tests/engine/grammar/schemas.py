"""Random JSON schemas of what is enforced. Owns: the strategy. Must not know: how they are compiled."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = ("a", "b", "name", "größe", 'q"t', "x/y", "")
FORMATS = ("date", "ipv4", "ipv6", "uuid", "email")  # those that jsonschema checks by itself
PATTERNS = ("^[a-c]{2,4}$", "x", "^a|b$", r"^\d+(\.\d)?$", "[^a-z]")


def bounds(draw: st.DrawFn, low: str, high: str, most: int = 5) -> dict[str, int]:
    least = draw(st.integers(0, most))
    pair = {low: least, high: draw(st.integers(least, most))}
    return {name: pair[name] for name in draw(st.sampled_from([(), (low,), (high,), (low, high)]))}


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["integer", "number"]))
    if draw(st.integers(0, 3)) == 0:
        return {"type": kind, "multipleOf": draw(st.sampled_from([3, 10, 7]))}
    low = draw(st.integers(-40, 40))
    high = low + draw(st.integers(2, 60))
    given = {draw(st.sampled_from(["minimum", "exclusiveMinimum"])): low,
             draw(st.sampled_from(["maximum", "exclusiveMaximum"])): high}  # fmt: skip
    return {"type": kind, **{name: value for name, value in given.items() if draw(st.booleans())}}


@st.composite
def leaves(draw: st.DrawFn) -> dict[str, Any]:
    which = draw(st.integers(0, 6))
    if which == 0:
        return {"type": "string", **bounds(draw, "minLength", "maxLength")}
    if which == 1:
        return {"type": "string", "pattern": draw(st.sampled_from(PATTERNS))}
    if which == 2:
        return {"type": "string", "format": draw(st.sampled_from(FORMATS))}
    if which == 3:
        return draw(numbers())
    if which == 4:
        return {
            "enum": draw(
                st.lists(st.sampled_from(["x", "é", 1, -2.5, None, True, [1], {"k": "v"}]), min_size=1, max_size=4)
            )
        }
    if which == 5:
        return {"const": draw(st.sampled_from(["fixed text", 12, None, False, {"deep": [1, 2]}]))}
    return {"type": draw(st.sampled_from(["boolean", "null", ["integer", "null"], ["boolean", "string"]]))}


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    schema: dict[str, Any] = {"type": "object", "properties": {name: draw(inner) for name in names}}
    schema["required"] = [name for name in names if draw(st.booleans())]
    schema["additionalProperties"] = draw(st.sampled_from([False, False, {"type": "integer"}]))
    return schema


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": draw(inner), **bounds(draw, "minItems", "maxItems", 3)}
    if draw(st.booleans()):
        schema["prefixItems"] = [draw(inner)]
    return schema


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    """With shared definitions at times, which ``$ref`` names."""
    shared = draw(st.none() | leaves())
    leaf = leaves() if shared is None else leaves() | st.just({"$ref": "#/$defs/shared"})
    tree = st.recursive(
        leaf,
        lambda inner: (
            objects(inner) | arrays(inner) | st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)})
        ),
        max_leaves=6,
    )
    schema = draw(tree)
    return schema if shared is None else {**schema, "$defs": {"shared": shared}}
