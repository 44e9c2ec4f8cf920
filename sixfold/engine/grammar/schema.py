"""JSON Schemas as llguidance takes them, and what is refused by name: a keyword that would not be enforced.

Owns: the walk over a schema, with a JSON pointer to where it is. Must not know: llguidance, tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from itertools import combinations
from typing import Any

from sixfold.errors import InvalidRequestError

ENFORCED = frozenset((
    "$ref", "additionalItems", "additionalProperties", "allOf", "anyOf", "const", "enum", "exclusiveMaximum",
    "exclusiveMinimum", "format", "items", "maxItems", "maxLength", "maximum", "minItems", "minLength", "minProperties",
    "minimum", "maxProperties", "multipleOf", "oneOf", "pattern", "patternProperties", "prefixItems", "properties",
    "required", "type",
))  # fmt: skip
# They say nothing of what is valid; OpenAPI's and OpenAI's among them.
ANNOTATIONS = frozenset((
    "$anchor", "$comment", "$defs", "$id", "$schema", "contentEncoding", "contentMediaType", "default", "definitions",
    "deprecated", "description", "discriminator", "example", "examples", "externalDocs", "id", "propertyOrdering",
    "readOnly", "title", "writeOnly", "xml",
))  # fmt: skip
FORMATS = frozenset((
    "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid",
))  # fmt: skip
MAX_DEPTH = 100
MAX_NODES = 50_000
MAX_ONE_OF = 64  # options: each is compared with each
MAX_COMPARED = 1_000_000  # values, names and characters of references in all comparisons: about a second
MAX_COMPARED_DEPTH = 8  # properties within properties
MAX_MULTIPLE = 20_000  # the automaton of multipleOf has that many states
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_STRUCTURE = frozenset(
    ("$anchor", "$defs", "$id", "$schema", "definitions", "id")
)  # of the annotations, these are kept
_SINGLE = ("items", "additionalItems", "additionalProperties")


def refuse(what: str, pointer: str, cause: str = "", remedy: str = "Leave it out, or say it another way") -> Any:
    raise InvalidRequestError(
        f"The JSON schema is not supported: {what} at {pointer or '/'}", cause=cause, remedy=remedy,
        param="structured_outputs",
    )  # fmt: skip


def read_schema(text: str) -> Any:
    """The parsed schema. Raises InvalidRequestError."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            "The JSON schema is not valid JSON", cause=str(error)[:200], remedy="Send a JSON Schema",
            param="structured_outputs",
        ) from None  # fmt: skip
    if not isinstance(schema, dict | bool):
        refuse(f"a {type(schema).__name__}", "", remedy="Send an object")
    return schema


def prepare(schema: Any, *, close_objects: bool = False) -> Any:
    """A copy without what says nothing, with ``oneOf`` as ``anyOf`` where at most one of its options can hold.

    ``close_objects``: no additional properties where the schema does not speak of them. Raises InvalidRequestError
    naming the first keyword that would not be enforced, and where it is.
    """
    return _Preparation(schema, close_objects).schema


def children(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(pointer below this one, subschema) of the schemas directly inside."""
    for name in _MAPS:
        if isinstance(inner := schema.get(name), dict):
            yield from ((f"/{name}/{escape(key)}", value) for key, value in inner.items())
    for name in _LISTS:
        if isinstance(inner := schema.get(name), list):
            yield from ((f"/{name}/{index}", value) for index, value in enumerate(inner))
    for name in _SINGLE:
        if isinstance(inner := schema.get(name), dict):
            yield f"/{name}", inner


def escape(key: str) -> str:
    """A key as part of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


class _Preparation:
    def __init__(self, schema: Any, close_objects: bool) -> None:
        self._root = schema
        self._close = close_objects
        self._nodes = 0
        self._multiple = 1
        self._compared = 0
        self.schema = self._schema(schema, "", 0)

    def _schema(self, node: Any, at: str, depth: int) -> Any:
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            refuse(f"{json.dumps(node)[:40]} where a schema is expected", at, remedy="Write an object, true or false")
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            refuse("its size", at, cause=f"at most {MAX_DEPTH} levels and {MAX_NODES} subschemas are compiled")
        done = {}
        for key, value in node.items():
            if key in ANNOTATIONS and key not in _STRUCTURE:
                continue
            made = self._value(key, value, node, f"{at}/{escape(key)}", depth)
            if made is not _DROPPED:
                done[key] = made
        if "oneOf" in done and self._is_any_of(node["oneOf"], f"{at}/oneOf"):
            done = {("anyOf" if key == "oneOf" and "anyOf" not in node else key): value for key, value in done.items()}
        if self._close and "properties" in done and "additionalProperties" not in done:
            done["additionalProperties"] = False
        return done

    def _value(self, key: str, value: Any, node: dict[str, Any], at: str, depth: int) -> Any:
        if key in _MAPS:
            if not isinstance(value, dict):
                refuse(f"{key} is no object", at)
            return {name: self._schema(inner, f"{at}/{escape(name)}", depth + 1) for name, inner in value.items()}
        if key in _LISTS and isinstance(value, list):
            return [self._schema(inner, f"{at}/{index}", depth + 1) for index, inner in enumerate(value)]
        if key in _SINGLE:
            return self._schema(value, at, depth + 1)
        check = getattr(self, f"_check_{key.removeprefix('$')}", None)
        if check is not None:
            return check(value, node, at)
        if key.startswith("x-") and key != "x-guidance":
            return _DROPPED
        if key not in ENFORCED and key not in ANNOTATIONS:
            refuse(f"the keyword {key[:60]}", at, cause="it can not be enforced")
        return value

    def _check_ref(self, value: Any, node: dict[str, Any], at: str) -> Any:
        if not isinstance(value, str) or not value.startswith("#"):
            refuse(f"$ref {str(value)[:60]!r}", at, cause="only references within the schema (#/...) are followed")
        return value

    def _check_format(self, value: Any, node: dict[str, Any], at: str) -> Any:
        kind = node.get("type")
        if kind is not None and "string" not in (kind if isinstance(kind, list) else [kind]):
            return _DROPPED  # formats are of strings; OpenAPI writes {"type": "integer", "format": "int32"}
        if value not in FORMATS:
            refuse(f"the keyword format with {str(value)[:60]!r}", at, cause=f"known are {', '.join(sorted(FORMATS))}")
        return value

    def _check_multipleOf(self, value: Any, node: dict[str, Any], at: str) -> Any:
        try:
            coefficient = _coefficient(value)
        except (InvalidOperation, ValueError):
            return refuse("the keyword multipleOf without a number", at)
        self._multiple = math.lcm(self._multiple, max(1, coefficient))
        if self._multiple > MAX_MULTIPLE:
            refuse(f"the keyword multipleOf with {value}", at, cause=f"all of them together may make {MAX_MULTIPLE}")
        return value

    def _is_any_of(self, options: Any, at: str) -> bool:
        """Whether at most one of them can hold. Refuses what takes too long to compare."""
        if not isinstance(options, list):
            return False
        if len(options) > MAX_ONE_OF:
            refuse(
                f"the keyword oneOf with {len(options)} options", at, cause=f"at most {MAX_ONE_OF} are compared",
                remedy="Use anyOf",
            )  # fmt: skip
        for pair in combinations(options, 2):
            apart = self._exclude(*pair)
            if self._compared > MAX_COMPARED:
                refuse("the keyword oneOf", at, cause="its options take too long to compare", remedy="Use anyOf")
            if not apart:
                return False
        return True

    def _exclude(self, one: Any, other: Any, depth: int = 0) -> bool:
        """Whether no value satisfies both: by their types, or by a property that both require with other values."""
        one, other = self._resolve(one), self._resolve(other)
        self._compared += _weight(one) + _weight(other)
        if depth > MAX_COMPARED_DEPTH or self._compared > MAX_COMPARED:
            return False
        if not isinstance(one, dict) or not isinstance(other, dict):
            return one is False or other is False
        types, others = _types(one), _types(other)
        if types is not None and others is not None and not types & others:
            return True
        values, rest = _values(one), _values(other)
        if values is not None and rest is not None and not values & rest:
            return True
        if types != {"object"} or others != {"object"}:
            return False
        shared = set(one.get("required") or ()) & set(other.get("required") or ())
        return any(self._exclude(_property(one, name), _property(other, name), depth + 1) for name in shared)

    def _resolve(self, node: Any) -> Any:
        for _ in range(8):
            if not isinstance(node, dict) or set(node) - ANNOTATIONS != {"$ref"}:
                return node
            self._compared += len(str(node["$ref"]))
            target: Any = self._root
            for part in str(node["$ref"]).removeprefix("#").split("/")[1:]:
                target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
            node = target
        return None


_DROPPED = object()


def _coefficient(value: Any) -> int:
    """A number without its power of ten below 1: 25 of 0.25, 300 of 300."""
    _, figures, exponent = Decimal(str(value)).normalize().as_tuple()
    power: int = 10 ** max(0, min(int(exponent), 9))
    return int("".join(map(str, figures))) * power


def _weight(node: Any) -> int:
    """Of a comparison with it."""
    lists = [node.get(name) for name in ("enum", "required", "type")] if isinstance(node, dict) else []
    return 1 + sum(len(one) for one in lists if isinstance(one, list))


def _types(node: dict[str, Any]) -> set[str] | None:
    """The JSON types that are possible, integers counted as numbers; None: not said."""
    kind = node.get("type")
    names = kind if isinstance(kind, list) else [kind]
    found = {name for name in names if isinstance(name, str)}
    if len(found) != len(names):
        return None
    return {"number" if name == "integer" else name for name in found}


def _values(node: dict[str, Any]) -> set[str] | None:
    """The values that are possible, as text; None: not listed."""
    listed = [node["const"]] if "const" in node else node.get("enum")
    if not isinstance(listed, list) or not all(isinstance(v, str | bool | None) for v in listed):
        return None
    return {json.dumps(value) for value in listed}


def _property(node: dict[str, Any], name: str) -> Any:
    properties = node.get("properties")
    return properties.get(name) if isinstance(properties, dict) else None
