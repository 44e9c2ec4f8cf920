"""The request fields that say what an answer must be: OpenAI's, vLLM's (new and older), TGI's and llama.cpp's.

Owns: their shapes, and that only one of them is given. Must not know: how a grammar is compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sixfold.errors import InvalidRequestError
from sixfold.server.body import clip, kind_of, unknown_field
from sixfold.types import StructuredOutputsParams

_FIELDS = tuple(field.name for field in dataclasses.fields(StructuredOutputsParams))
_GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}
STRUCTURED_FIELDS = frozenset(
    {
        "response_format",
        "structured_outputs",
        "grammar",
        *_GUIDED,
        "guided_whitespace_pattern",
        "guided_decoding_backend",
    }
)
_BACKENDS = ("auto", "guidance", "llguidance")


def structured_outputs(given: Mapping[str, Any]) -> StructuredOutputsParams | None:
    """From the fields ``response_format``, ``structured_outputs``, ``grammar`` and ``guided_*`` that were sent.

    None: none of them asks for anything. Raises InvalidRequestError.
    """
    demands = {name: demand for name in given if (demand := _demand(name, given[name])) is not None}
    if len(demands) > 1:
        raise InvalidRequestError(
            f"{' and '.join(demands)} are given together", cause="one answer can follow one of them only",
            remedy="Send one of them", param=next(iter(demands)),
        )  # fmt: skip
    pattern = given.get("guided_whitespace_pattern")
    if pattern is None:
        return next(iter(demands.values()), None)
    if not isinstance(pattern, str):
        raise _wrong("guided_whitespace_pattern", pattern, "a regex")
    for name, demand in demands.items():
        if name.startswith("guided_"):
            return dataclasses.replace(demand, whitespace_pattern=pattern)
    raise _wrong("guided_whitespace_pattern", pattern, "it together with guided_json")


def _demand(name: str, value: Any) -> StructuredOutputsParams | None:
    if name == "response_format":
        return response_format(value)
    if name == "grammar":
        return tgi_grammar(value)
    if name == "structured_outputs":
        return _structured(value)
    if name == "guided_decoding_backend" and value not in _BACKENDS:
        raise _wrong(name, value, f"{' or '.join(_BACKENDS)}, or leave it out")
    if name not in _GUIDED or value in ("", [], {}):
        return None
    return _params(name, {_GUIDED[name]: value})


def response_format(value: Any) -> StructuredOutputsParams | None:
    """OpenAI's, with the schema also where TGI (``value``) and llama.cpp (``schema``) have it."""
    name = "response_format"
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        _only(name, value, ("type",))
        return None
    if kind == "json_object" and value.keys() <= {"type"}:
        return StructuredOutputsParams(json_object=True)
    if kind == "json_schema" and "json_schema" in value:
        _only(name, value, ("type", "json_schema"))
        return _json_schema(f"{name}.json_schema", value["json_schema"])
    if kind in ("json_object", "json_schema", "json") and "schema" in value:
        _only(name, value, ("type", "schema", "strict"))
        return _params(name, {"json": value["schema"]})
    if kind in ("json_object", "json_schema", "json", "regex") and "value" in value:
        return tgi_grammar(value, name)
    raise _wrong(name, value, '{"type": "text" | "json_object"} or {"type": "json_schema", "json_schema": ...}')


def tgi_grammar(value: Any, name: str = "grammar") -> StructuredOutputsParams | None:
    """TGI's ``grammar`` parameter, ``{"type": "json" | "json_schema" | "regex", "value": ...}``; a string is GBNF or
    Lark, as for llama.cpp."""
    if isinstance(value, str):
        return _params(name, {"grammar": value})
    if not isinstance(value, dict) or "value" not in value:
        raise _wrong(name, value, '{"type": "json", "value": <schema>} or {"type": "regex", "value": "..."}')
    _only(name, value, ("type", "value"))
    kind, content = value.get("type"), value["value"]
    if kind == "regex":
        return _params(name, {"regex": content})
    if kind == "json_schema" and isinstance(content, dict) and "schema" in content:
        return _json_schema(f"{name}.value", content)
    if kind in ("json", "json_object", "json_schema"):
        return _params(name, {"json": content})
    raise _wrong(f"{name}.type", kind, "json, json_schema or regex")


def _json_schema(name: str, value: Any) -> StructuredOutputsParams:
    """``strict`` or not, the schema is always kept to."""
    if not isinstance(value, dict) or "schema" not in value:
        raise _wrong(name, value, '{"name": ..., "schema": <schema>}')
    _only(name, value, ("name", "description", "schema", "strict"))
    return _params(name, {"json": value["schema"]})


def _structured(value: Any) -> StructuredOutputsParams | None:
    name = "structured_outputs"
    if not isinstance(value, dict):
        raise _wrong(name, value, "an object")
    given = {key: one for key, one in value.items() if one is not None}
    if given.get("structural_tag"):
        raise InvalidRequestError(
            "structured_outputs.structural_tag is not supported", remedy="Use json, regex, choice or grammar",
            param=f"{name}.structural_tag",
        )  # fmt: skip
    given.pop("structural_tag", None)
    _only(name, given, _FIELDS)
    return _params(name, given) if given else None


def _params(name: str, given: Mapping[str, Any]) -> StructuredOutputsParams:
    for key, value in given.items():
        where = name if key in _GUIDED.values() and len(given) == 1 else f"{name}.{key}"
        if key == "json" and not isinstance(value, dict | str | bool):
            raise _wrong(where, value, "a JSON Schema")
        if key in ("regex", "grammar", "whitespace_pattern") and not isinstance(value, str):
            raise _wrong(where, value, "a string")
        if key == "choice" and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            raise _wrong(where, value, "an array of strings")
        if key.startswith(("disable_", "json_object")) and not isinstance(value, bool):
            raise _wrong(where, value, "true or false")
    return StructuredOutputsParams(**given)


def _only(name: str, value: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in value:
        if key not in known:
            raise unknown_field(key, known, f"{name}.")


def _wrong(name: str, value: Any, wanted: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} is {kind_of(value)} {clip(value)}", remedy=f"Send {wanted}", param=name)
