"""Request bytes into a validated model, and every way this can fail into an error that names the field.

Owns: JSON strictness, unknown fields, the wording of type errors. Must not know: what the fields mean.
"""

from __future__ import annotations

import asyncio
import difflib
import reprlib
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from sixfold.errors import InvalidRequestError
from sixfold.server.error_body import MediaTypeError

M = TypeVar("M", bound=BaseModel)

# Larger bodies are checked in a thread: a million token ids would hold up everybody's tokens for a second.
_THREAD_BYTES = 64 << 10


async def read(request: Request, model: type[M]) -> M:
    """The request's body as ``model``. Raises :class:`InvalidRequestError` and its HTTP subclasses."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json":
        # Also keeps web pages from posting here as a "simple" request, for which browsers ask no permission.
        raise MediaTypeError(
            f"The content type {clip(media_type)} is not accepted",
            remedy="Send JSON with the header content-type: application/json",
        )  # fmt: skip
    raw = await request.body()
    if len(raw) > _THREAD_BYTES:
        return await asyncio.to_thread(parse, raw, model)
    return parse(raw, model)


def parse(raw: bytes, model: type[M]) -> M:
    """Strict: no NaN, no half Unicode, no nesting beyond 200. An explicit null means "not given"."""
    try:
        # Depth, digits and surrogates are bounded by the parser itself, so hostile JSON ends here.
        data = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequestError(
            "The body is not valid JSON", cause=str(error), remedy="Send one JSON object"
        ) from None
    if not isinstance(data, dict):
        raise InvalidRequestError(f"The body is a JSON {kind_of(data)}", remedy="Send one JSON object")
    for name in data:
        if name not in model.model_fields:
            raise unknown_field(name, model.model_fields)
    given = {name: value for name, value in data.items() if value is not None}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _explain(error) from None


def unknown_field(name: str, known: Iterable[str], where: str = "") -> InvalidRequestError:
    known = sorted(known)
    near = difflib.get_close_matches(name[:64], known, n=1, cutoff=0.6)
    remedy = f"Did you mean {where}{near[0]}?" if near else f"Known fields: {', '.join(known)}"
    return InvalidRequestError(f"Unknown field {where}{clip(name)}", remedy=remedy, param=clip(where + name))


def clip(value: Any, limit: int = 80) -> str:
    """A client's value, short enough to be quoted back, made without first writing all of it out."""
    if isinstance(value, str):
        return value if len(value) <= limit else f"{value[:limit]}..."
    try:
        text = reprlib.repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        return "of too many digits"
    return text if len(text) <= limit else f"{text[:limit]}..."


def kind_of(value: Any) -> str:
    """The JSON name of a parsed value's type."""
    if value is None:
        return "null"
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), type(value).__name__)


def _explain(error: ValidationError) -> InvalidRequestError:
    first = error.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "missing":
        return InvalidRequestError(f"The field {name} is missing", remedy=f"Add {name}", param=name)
    got = f"{kind_of(first['input'])} {clip(first['input'])}"
    return InvalidRequestError(f"{name} has a wrong value ({got})", cause=first["msg"], param=name)
