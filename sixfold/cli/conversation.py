"""What a chat is made of: the messages, the system message and the sampling settings.

Owns: how they change, and the file they are saved in. Must not know: terminals or who answers.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sixfold.errors import InvalidRequestError
from sixfold.types import SamplingParams

DEFAULTS: dict[str, Any] = {"temperature": 0.7, "top_p": 0.95}
# Fields of SamplingParams that a chat of one answer at a time has no use for.
_UNUSED = {"n", "logprobs", "prompt_logprobs"}
SETTABLE = {f.name: str(f.type) for f in dataclasses.fields(SamplingParams) if f.name not in _UNUSED}
_SWITCH = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}


@dataclass
class Conversation:
    """Turns of user and assistant, one after the other, behind an optional system message."""

    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS))

    @property
    def messages(self) -> list[dict[str, str]]:
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return first + self.turns

    def say(self, role: str, content: str) -> None:
        self.turns.append({"role": role, "content": content})

    def undo(self) -> str | None:
        """Takes back the last question and its answer; gives the question, None when there is none."""
        while self.turns:
            if (turn := self.turns.pop())["role"] == "user":
                return turn["content"]
        return None

    def set(self, name: str, text: str) -> None:
        """Sets a sampling field from words; ``default`` takes it back. Raises InvalidRequestError."""
        if name not in SETTABLE:
            raise InvalidRequestError(f"There is no setting {name!r}", remedy=f"Settings: {', '.join(SETTABLE)}")
        changed = {**self.settings, name: _value(name, text)}
        if text.lower() == "default":
            changed.pop(name)
            if name in DEFAULTS:
                changed[name] = DEFAULTS[name]
        SamplingParams(**{"max_tokens": None, **changed})  # refuses what is out of range
        self.settings = changed

    def save(self, path: Path, model: str) -> None:
        content = {"model": model, "messages": self.messages, "settings": self.settings}
        try:
            path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InvalidRequestError(f"{path} cannot be written", cause=error.strerror or str(error)) from None

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Reads what :meth:`save` wrote. Raises InvalidRequestError."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidRequestError(f"{path} cannot be read", cause=error.strerror or str(error)) from None
        except ValueError as error:
            raise InvalidRequestError(f"{path} is not JSON", cause=str(error)) from None
        loaded = cls()
        messages, settings = _parts(content, path)
        if messages and messages[0]["role"] == "system":
            loaded.system = messages.pop(0)["content"]
        loaded.turns = messages
        for name, value in settings.items():
            loaded.set(name, value if isinstance(value, str) else json.dumps(value))
        return loaded


def _parts(content: Any, path: Path) -> tuple[list[dict[str, str]], dict[str, Any]]:
    messages = content.get("messages") if isinstance(content, dict) else content
    settings = content.get("settings", {}) if isinstance(content, dict) else {}
    if not isinstance(messages, list) or not isinstance(settings, dict) or not all(map(_is_message, messages)):
        raise InvalidRequestError(
            f"{path} holds no conversation", remedy='It needs {"messages": [{"role": ..., "content": ...}]}'
        )
    return [{"role": m["role"], "content": m["content"]} for m in messages], settings


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in ("system", "user", "assistant")
        and isinstance(value.get("content"), str)
    )


def _value(name: str, text: str) -> Any:
    """The value of a field from what was typed."""
    kind = SETTABLE[name]
    if text.lower() in ("default", "none"):
        return None if "None" in kind else getattr(SamplingParams(), name)
    try:
        if kind.startswith("bool"):
            return _SWITCH[text.lower()]
        if kind.startswith("int"):
            return int(text)
        if kind.startswith("float"):
            return float(text)
        if name == "stop" and not text.startswith("["):
            return (text.strip("\"'").encode().decode("unicode_escape") if text.isascii() else text,)
        value = json.loads(text)
        if name == "logit_bias":
            return {int(token): float(bias) for token, bias in value.items()}
        wanted = str if name == "stop" else int
        if isinstance(value, list) and all(type(item) is wanted for item in value):
            return tuple(value)
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise InvalidRequestError(f"{name} does not take {text!r}", remedy=f"It is of type {kind}", param=name)
