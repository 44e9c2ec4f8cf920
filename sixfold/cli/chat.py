"""``sixfold chat``: a conversation in the terminal.

Owns: the loop of reading, asking and showing. Must not know: who answers, or what the ``/`` commands do.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sixfold.cli import console
from sixfold.cli.ending import report
from sixfold.cli.options import (
    AcceptLicense,
    Isa,
    KVFormat,
    KVMemory,
    MaxModelLen,
    OptionalModel,
    PrefixCache,
    Pull,
    Template,
    Threads,
)
from sixfold.errors import ContextLengthError, SixfoldError

if TYPE_CHECKING:
    from sixfold.cli.answer import Answer
    from sixfold.cli.backend import Backend
    from sixfold.cli.conversation import Conversation

HISTORY_LINES = 1000


def chat(
    model: OptionalModel = None,
    url: Annotated[str | None, typer.Option(help="Chat with a running server instead, e.g. http://host:8000.")] = None,
    api_key: Annotated[str | None, typer.Option(help="The server's key; better in SIXFOLD_API_KEY.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    load: Annotated[Path | None, typer.Option(metavar="FILE", help="Go on with a saved conversation.")] = None,
    chat_template: Template = None,
    max_model_len: MaxModelLen = None,
    kv_memory: KVMemory = None,
    kv_format: KVFormat = None,
    prefix_cache: PrefixCache = None,
    threads: Threads = None,
    isa: Isa = None,
    pull: Pull = True,
    accept_license: AcceptLicense = False,
) -> None:
    """Chat with a model in the terminal; /help lists what else can be done."""
    from sixfold import config
    from sixfold.cli.backend import LocalBackend, RemoteBackend
    from sixfold.cli.conversation import Conversation

    conversation = Conversation.load(load) if load else Conversation()
    conversation.system = system or conversation.system
    backend: Backend
    if url is not None:
        if chat_template or max_model_len or kv_memory or kv_format or prefix_cache is not None or threads or isa:
            raise typer.BadParameter("with --url the server decides how the model is run", param_hint="--url")
        key = config.load(config.ServerConfig, "server", {"api_key": api_key}).api_key
        backend = RemoteBackend(url, model=model, api_key=key)
    else:
        from sixfold.cli.fetch import fetch

        flags = {
            "model": model, "max_model_len": max_model_len, "kv_memory": kv_memory, "kv_format": kv_format,
            "prefix_cache": prefix_cache, "threads": threads, "isa": isa,
        }  # fmt: skip
        engine = config.load(config.EngineConfig, "engine", {"max_num_seqs": 1, **flags})
        fetch(engine.model, accept_license=accept_license, pull=pull)
        with console.busy(f"Loading {engine.model}"):
            backend = LocalBackend(engine, chat_template)
    try:
        if isinstance(backend, LocalBackend):
            backend.require_template()
        with _line_editing(config.home() / "chat_history"):
            Chat(backend, conversation).run()
    finally:
        backend.close()


class Chat:
    """One session at a terminal, or over a pipe with a question a line."""

    def __init__(self, backend: Backend, conversation: Conversation) -> None:
        self.conversation = conversation
        self.model = backend.name
        self._backend = backend
        self._interactive = sys.stdin.isatty()
        self._answers: list[Answer] = []

    def run(self) -> None:
        from sixfold.cli.slash import Leave, obey

        context = f", context {self._backend.context} tokens" if self._backend.context else ""
        self.note(f"{self.model}{context}. /help lists the commands, Ctrl-D leaves.")
        while True:
            try:
                line = self._read("> ")
                if line.startswith("/") and not line.startswith("//"):
                    obey(self, line)
                elif line.strip():
                    self.ask(line.removeprefix("/") if line.startswith("//") else line)
            except (EOFError, Leave):
                break
            except SixfoldError as error:
                if not self._interactive:  # a script should notice
                    raise
                report(error)
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                self.note("\n(Ctrl-D or /exit leaves)")

    def ask(self, text: str) -> None:
        """Sends a question with the whole conversation and shows the answer. Ctrl-C ends the answer only."""
        from sixfold.cli.answer import Answer

        self.conversation.say("user", text)
        answer = Answer(console.write)
        stopped = False
        try:
            self._backend.chat(self.conversation.messages, self.conversation.settings, answer)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            stopped = True
        except SixfoldError as error:
            self._end_line(answer)
            self._keep(answer)
            raise _too_long(error) if isinstance(error, ContextLengthError) else error from None
        self._end_line(answer)
        self._keep(answer)
        self._show_end(answer, stopped)

    def note(self, text: str) -> None:
        """What we say ourselves, dim on a terminal, beside the answers."""
        from rich.text import Text

        console.stderr().print(Text(console.printable(text), style="dim"))

    def statistics(self) -> str:
        tokens = sum(answer.tokens for answer in self._answers)
        seconds = sum(answer.seconds for answer in self._answers)
        lines = [f"model      {self.model}", f"answers    {len(self._answers)}, {tokens} tokens in {seconds:.1f} s"]
        if self._answers:
            lines.append(f"last       {self._summary(self._answers[-1])}")
        return "\n".join(lines)

    def read_lines(self, end: str) -> str | None:
        lines: list[str] = []
        while (line := self._read("… ")) != end:
            lines.append(line)
        return "\n".join(lines)

    def _read(self, prompt: str) -> str:
        return input(prompt if self._interactive else "")

    def _end_line(self, answer: Answer) -> None:
        if answer.text and not answer.text.endswith("\n"):
            console.write("\n")

    def _keep(self, answer: Answer) -> None:
        """The answer goes into the history; a question that got none comes out of it."""
        if answer.text:
            self.conversation.say("assistant", answer.text)
            self._answers.append(answer)
        else:
            self.conversation.undo()

    def _show_end(self, answer: Answer, stopped: bool) -> None:
        self.note(f"[{self._summary(answer)}{' | stopped' if stopped else ''}]")
        if not answer.text and not stopped:
            self.note("The model had nothing to say; the question is not part of the conversation.")
        if answer.finish_reason == "length":
            limit = self.conversation.settings.get("max_tokens")
            if limit is not None and answer.tokens >= limit:
                self.note(f"The answer was cut at max_tokens={limit}; /set max_tokens default lets it end by itself.")
            else:
                self.note("The answer was cut: the context is full. /undo takes back turns, /clear begins anew.")

    def _summary(self, answer: Answer) -> str:
        first, speed = answer.first_token_seconds, answer.tokens_per_second
        used = answer.prompt_tokens + answer.tokens
        parts = [
            f"{answer.tokens} tokens",
            None if first is None else f"first after {first * 1000:.0f} ms",
            None if speed is None else f"{speed:.1f} tokens/s",
            f"{answer.cached_tokens} prompt tokens cached" if answer.cached_tokens else None,
            f"context {used}/{self._backend.context}" if self._backend.context and answer.prompt_tokens else None,
        ]
        return " | ".join(part for part in parts if part)


def _too_long(error: ContextLengthError) -> ContextLengthError:
    """The engine's numbers with the advice that helps in a chat."""
    return ContextLengthError(
        "The conversation no longer fits, and nothing of it was dropped",
        cause=f"{error.what}: {error.cause}" if error.cause else error.what,
        remedy="/undo takes back turns, /clear begins anew, --max-model-len sets the context",
    )


@contextlib.contextmanager
def _line_editing(history: Path) -> Iterator[None]:
    """Arrow keys and history for ``input``, where Python has readline and there is a terminal."""
    try:
        import readline
    except ImportError:
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            history.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(history)
