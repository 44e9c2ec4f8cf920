"""The ``/`` commands of a chat.

Owns: their names, help and what they do to the session. Must not know: how an answer is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sixfold.cli.conversation import DEFAULTS, SETTABLE, Conversation
from sixfold.errors import InvalidRequestError
from sixfold.types import SamplingParams


class Session(Protocol):
    """What commands may touch."""

    conversation: Conversation
    model: str

    def ask(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def statistics(self) -> str: ...
    def read_lines(self, end: str) -> str | None: ...


class Leave(Exception):
    """The user wants to leave the chat."""


@dataclass(frozen=True)
class Command:
    usage: str
    help: str
    run: Callable[[Session, str], None]


def obey(session: Session, line: str) -> None:
    """Runs one line that begins with ``/``. Raises SixfoldError for what it cannot do, and :class:`Leave`."""
    name, _, argument = line.removeprefix("/").partition(" ")
    command = COMMANDS.get(_ALIASES.get(name, name))
    if command is None:
        close = [known for known in COMMANDS if name and known.startswith(name)]
        hint = f"Did you mean /{close[0]}? " if close else ""
        raise InvalidRequestError(f"There is no command /{name}", remedy=f"{hint}/help lists the commands")
    command.run(session, argument.strip())


def _help(session: Session, argument: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"/{command.usage:<{width}}  {command.help}" for command in COMMANDS.values()]
    session.note(
        "\n".join([*lines, "", "Ctrl-C stops an answer, Ctrl-D leaves. //text sends a text that begins with /"])
    )


def _exit(session: Session, argument: str) -> None:
    raise Leave


def _clear(session: Session, argument: str) -> None:
    session.conversation.turns.clear()
    kept = ", with the same system message" if session.conversation.system else ""
    session.note(f"The conversation begins anew{kept}.")


def _set_system(session: Session, argument: str) -> None:
    if argument:
        session.conversation.system = None if argument in ("none", "default") else argument
    session.note(f"System message: {session.conversation.system or 'none'}")


def _set(session: Session, argument: str) -> None:
    name, _, value = argument.replace("=", " ", 1).partition(" ")
    if name and not value.strip():
        raise InvalidRequestError(f"/set {name} has no value", remedy=f"Write /set {name} VALUE, or default")
    if name:
        session.conversation.set(name, value.strip())
        session.note(f"{name} = {session.conversation.settings.get(name, 'default')}")
        return
    plain = SamplingParams(max_tokens=None)
    now = {field: session.conversation.settings.get(field, getattr(plain, field)) for field in SETTABLE}
    changed = session.conversation.settings.keys() - DEFAULTS.keys()
    session.note(
        "\n".join(f"{field:<28}{value}{'  (set)' if field in changed else ''}" for field, value in now.items())
    )


def _stats(session: Session, argument: str) -> None:
    session.note(session.statistics())


def _undo(session: Session, argument: str) -> None:
    question = session.conversation.undo()
    session.note("There is nothing to take back." if question is None else f"Taken back: {_short(question)}")


def _retry(session: Session, argument: str) -> None:
    question = session.conversation.undo()
    if question is None:
        raise InvalidRequestError("There is no question to ask again", remedy="Ask one")
    if "seed" in session.conversation.settings:
        session.note("(a seed is set, so the answer will be the same; /set seed default)")
    session.ask(question)


def _save(session: Session, argument: str) -> None:
    path = _path(argument, "/save")
    session.conversation.save(path, session.model)
    session.note(f"Saved {len(session.conversation.turns)} messages to {path}")


def _load(session: Session, argument: str) -> None:
    session.conversation = Conversation.load(_path(argument, "/load"))
    session.note(f"Loaded {len(session.conversation.turns)} messages; /history shows them")


def _history(session: Session, argument: str) -> None:
    shown = [f"[{message['role']}] {message['content']}" for message in session.conversation.messages]
    session.note("\n".join(shown) or "Nothing was said yet.")


def _multi(session: Session, argument: str) -> None:
    session.note("Several lines; a line with only /end sends them, Ctrl-C forgets them.")
    text = session.read_lines("/end")
    if text and text.strip():
        session.ask(text)


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise InvalidRequestError(f"{command} needs a file", remedy=f"Write {command} chat.json")
    return Path(argument).expanduser()


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"


COMMANDS = {
    command.usage.split()[0]: command
    for command in (
        Command("help", "this list", _help),
        Command("exit", "leave (also Ctrl-D)", _exit),
        Command("clear", "begin a new conversation, keep system message and settings", _clear),
        Command("system [TEXT]", "show or set the system message; none removes it", _set_system),
        Command("set [NAME VALUE]", "show or set sampling, e.g. /set temperature 0.7; default takes it back", _set),
        Command("retry", "answer the last question again", _retry),
        Command("undo", "take back the last question and answer", _undo),
        Command("multi", "write several lines, up to /end", _multi),
        Command("history", "show the conversation", _history),
        Command("stats", "tokens, speed and context of this session", _stats),
        Command("save FILE", "save the conversation as JSON", _save),
        Command("load FILE", "go on with a saved conversation", _load),
    )
}
_ALIASES = {"quit": "exit", "bye": "exit", "q": "exit", "?": "help", "h": "help", "reset": "clear", "new": "clear"}
