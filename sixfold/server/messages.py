"""Chat messages from JSON into the plain dictionaries that chat templates read.

Owns: roles, content parts, and what is refused by name. Must not know: templates or tokens.
"""

from __future__ import annotations

from typing import Any

from sixfold.errors import InvalidRequestError
from sixfold.server.body import clip, kind_of, unknown_field

# "developer" is the newer name of the system role; models are trained on "system".
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_LATER_ROLES = ("tool", "function")
_STRINGS = ("name", "reasoning_content", "reasoning")
# Clients send an assistant's earlier answer back as they got it, with these empty.
_UNSUPPORTED = ("tool_calls", "tool_call_id", "function_call", "audio", "refusal", "annotations")
_KNOWN = ("role", "content", *_STRINGS, *_UNSUPPORTED)


def parse_messages(value: Any) -> list[dict[str, Any]]:
    """Validated messages: ``role``, ``content`` as one string, and the optional strings that were given."""
    if not isinstance(value, list):
        raise InvalidRequestError(
            f"messages is {kind_of(value)}", remedy="Send an array of messages with role and content", param="messages"
        )
    if not value:
        raise InvalidRequestError("messages is empty", remedy="Send at least one message", param="messages")
    return [_message(item, f"messages[{i}]") for i, item in enumerate(value)]


def _message(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise InvalidRequestError(
            f"{where} is {kind_of(item)}", remedy="Send an object with role and content", param=where
        )
    for name, value in item.items():
        if name not in _KNOWN:
            raise unknown_field(name, _KNOWN, f"{where}.")
        if name in _UNSUPPORTED and value not in (None, [], ""):
            raise InvalidRequestError(
                f"{where}.{name} is not supported", cause="tool calls and media are not built into this server yet",
                remedy="Send the conversation as text", param=f"{where}.{name}",
            )  # fmt: skip
    role = _role(item.get("role"), f"{where}.role")
    message: dict[str, Any] = {"role": role, "content": _content(item.get("content"), role, f"{where}.content")}
    for name in _STRINGS:
        value = item.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise InvalidRequestError(
                f"{where}.{name} is {kind_of(value)}", remedy="Send a string", param=f"{where}.{name}"
            )
        message[name] = value
    return message


def _role(value: Any, where: str) -> str:
    if isinstance(value, str) and value in _ROLES:
        return _ROLES[value]
    known = ", ".join(_ROLES)
    if value in _LATER_ROLES:
        raise InvalidRequestError(
            f"{where} {value!r} is not supported", cause="tool calls are not built into this server yet",
            remedy=f"Use one of {known}", param=where,
        )  # fmt: skip
    what = f"{where} is missing" if value is None else f"{where} {clip(value)} is unknown"
    raise InvalidRequestError(what, remedy=f"Use one of {known}", param=where)


def _content(value: Any, role: str, where: str) -> str:
    if isinstance(value, str):
        return value
    if value is None and role == "assistant":
        return ""  # how clients send back an answer that had no text
    if isinstance(value, list):
        return "\n".join(_part(part, f"{where}[{i}]") for i, part in enumerate(value))
    what = f"{where} is missing" if value is None else f"{where} is {kind_of(value)}"
    raise InvalidRequestError(what, remedy="Send a string, or an array of text parts", param=where)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise InvalidRequestError(
            f"{where} is {kind_of(part)}", remedy='Send {"type": "text", "text": ...}', param=where
        )
    kind = part.get("type")
    if kind != "text":
        what = f"{where}.type is missing" if kind is None else f"{where} of type {clip(kind)} is not supported"
        raise InvalidRequestError(what, cause="this model reads text only", remedy="Send text parts", param=where)
    for name in part:
        if name not in ("type", "text"):
            raise unknown_field(name, ("type", "text"), f"{where}.")
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequestError(f"{where}.text is {kind_of(text)}", remedy="Send a string", param=f"{where}.text")
    return text
