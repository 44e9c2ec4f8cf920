"""Chat messages to the text a model was trained on, by the template that comes with the model.

Owns: :class:`ChatTemplate`, which template a model has, and what shape of messages it expects. Must not know:
tokens, HTTP, or how the sandbox keeps its limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes

from sixfold.engine.template_fuel import FUEL, Fuel, OutOfFuel
from sixfold.engine.template_sandbox import TemplateSandbox
from sixfold.engine.tokenizer import ModelSource
from sixfold.engine.tokenizer_hf import read_json
from sixfold.errors import TemplateError

MAX_SOURCE = 256 << 10  # bytes of a template
MAX_OUTPUT = 4 << 20  # characters of a rendered chat
WORK = 8  # what a template may make in all, as a multiple of its output limit

Message = Mapping[str, Any]


class ChatTemplate:
    """One compiled template. Safe to share between threads; each rendering has its own limits.

    ``seconds`` of processor time and ``max_output`` characters bound every rendering.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        seconds: float = 1.0,
        max_output: int = MAX_OUTPUT,
        tool_source: str | None = None,
    ) -> None:
        """``tool_source`` is the template to use when tools are given, for models that have one of its own."""
        sandbox = TemplateSandbox()
        self.source = source
        self._template = _compile(sandbox, source)
        self._tool_template = self._template if tool_source is None else _compile(sandbox, tool_source)
        self._parts, self._strings = _content_shapes(sandbox, source)
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._seconds = seconds
        self._max_output = max_output

    @classmethod
    def from_model(cls, model: ModelSource, *, seconds: float = 1.0) -> ChatTemplate | None:
        """The template of a GGUF file or Hugging Face directory; None if it has none (a base model)."""
        found = _from_gguf(model.metadata) if model.kind == "gguf" else _from_directory(model.path)
        if found is None:
            return None
        templates, bos, eos = found
        default = templates.get("default") or next(iter(templates.values()))
        tools = templates.get("tool_use")
        return cls(default, bos_token=bos, eos_token=eos, seconds=seconds, tool_source=tools)

    @classmethod
    def from_file(cls, path: Path, model: ModelSource, *, seconds: float = 1.0) -> ChatTemplate:
        """A template file of the user's in place of the model's own."""
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"The chat template {path} cannot be read", cause=str(error)) from None
        bos, eos = _gguf_tokens(model.metadata) if model.kind == "gguf" else _directory_tokens(model.path)
        return cls(source, bos_token=bos, eos_token=eos, seconds=seconds)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The text of a chat. ``kwargs`` are variables of the template (``enable_thinking``, ``documents``).

        Content given as parts becomes text where the template expects text, and the reverse. Raises
        :class:`TemplateError` when the template refuses the messages, fails, or passes a limit.
        """
        variables = {
            "messages": [self._shape(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": list(tools) if tools else None,
        }
        fuel = Fuel(WORK * self._max_output, self._seconds)
        token = FUEL.set(fuel)
        try:
            template = self._tool_template if tools else self._template
            return self._collect(template, {**self._tokens, **kwargs, **variables}, fuel)
        except TemplateError:
            raise
        except OutOfFuel as error:
            raise TemplateError(
                "The chat template was stopped", cause=str(error), remedy="Use another template, or a shorter chat"
            ) from None
        except jinja2.TemplateRuntimeError as error:  # raise_exception, an undefined name, an unsafe attribute
            raise TemplateError("The chat template refused these messages", cause=_reason(error)) from None
        except Exception as error:  # a template can raise anything: TypeError, RecursionError, MemoryError ...
            raise TemplateError(
                "The chat template failed on these messages",
                cause=_reason(error),
                remedy="Check the roles and contents against what the template expects",
            ) from None
        finally:
            FUEL.reset(token)

    def _collect(self, template: jinja2.Template, variables: dict[str, Any], fuel: Fuel) -> str:
        chunks, length = [], 0
        for chunk in template.generate(variables):
            fuel.check_time()
            length += len(chunk)
            if length > self._max_output:
                raise OutOfFuel(f"its output is longer than {self._max_output} characters")
            chunks.append(chunk)
        return "".join(chunks)

    def _shape(self, message: Message) -> dict[str, Any]:
        """The message with its content in a shape the template reads."""
        shaped = dict(message)
        content = shaped.get("content")
        if isinstance(content, list | tuple) and not self._parts:
            shaped["content"] = "\n".join(_text_of(part) for part in content)
        elif isinstance(content, str) and not self._strings:
            shaped["content"] = [{"type": "text", "text": content}]
        elif content is None and "content" in shaped and not self._parts:
            shaped["content"] = ""  # an answer that only calls tools
        return shaped


def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise TemplateError(
        f"The message content has a part of type {kind!r}",
        cause="this model's template reads text only",
        remedy='Send parts of the form {"type": "text", "text": "..."}',
    )


def _compile(sandbox: TemplateSandbox, source: str) -> jinja2.Template:
    if len(source) > MAX_SOURCE:
        raise TemplateError(
            f"The chat template is {len(source)} characters long", cause=f"at most {MAX_SOURCE} are read"
        )
    try:
        return sandbox.from_string(source)
    except Exception as error:  # syntax, unknown filters, nesting that neither jinja2 nor Python compiles
        raise TemplateError("The chat template does not compile", cause=_reason(error)) from None


def _content_shapes(sandbox: TemplateSandbox, source: str) -> tuple[bool, bool]:
    """Whether a template reads content as a list of parts, and whether it reads it as text.

    A loop over something called content means parts. If it loops and never asks whether something is a string, it
    cannot read text.
    """
    tree = sandbox.parse(source)
    names = {"content"}  # and variables set from it
    for assignment in tree.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name) and _is_content(assignment.node, names):
            names.add(assignment.target.name)
    parts = any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For))
    tests = {test.name for test in tree.find_all(nodes.Test)}
    return parts, not parts or bool(tests & {"string", "iterable", "sequence", "mapping"})


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    while isinstance(node, nodes.Filter) and node.node is not None:
        node = node.node
    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"


def _reason(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    text = str(error)[:500] or type(error).__name__
    return f"{text} (line {line})" if line else text


_Found = tuple[dict[str, str], str, str]  # templates by name, BOS and EOS as text


def _from_gguf(metadata: Mapping[str, Any]) -> _Found | None:
    prefix = "tokenizer.chat_template"
    templates = {}
    if isinstance(source := metadata.get(prefix), str) and source:
        templates["default"] = source
    for name in ("default", "tool_use"):
        if isinstance(source := metadata.get(f"{prefix}.{name}"), str) and source:
            templates.setdefault(name, source)
    return (templates, *_gguf_tokens(metadata)) if templates else None


def _gguf_tokens(metadata: Mapping[str, Any]) -> tuple[str, str]:
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    ids = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    bos, eos = (tokens[i] if isinstance(i, int) and 0 <= i < len(tokens) else "" for i in ids)
    return bos, eos


def _from_directory(directory: Path) -> _Found | None:
    settings = read_json(directory / "tokenizer_config.json")
    value = settings.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(value, str):
        templates["default"] = value
    elif isinstance(value, list):  # several, by name
        templates = {str(entry.get("name")): str(entry.get("template")) for entry in value if isinstance(entry, dict)}
    file = directory / "chat_template.jinja"
    if file.is_file():  # newer than the setting, so it wins
        try:
            templates["default"] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"{file.name} cannot be read", cause=str(error)) from None
    elif isinstance(old := read_json(directory / "chat_template.json").get("chat_template"), str):
        templates.setdefault("default", old)
    return (templates, *_directory_tokens(directory)) if templates else None


def _directory_tokens(directory: Path) -> tuple[str, str]:
    settings = read_json(directory / "tokenizer_config.json")
    values = (settings.get(f"{name}_token") for name in ("bos", "eos"))
    texts = (value.get("content") if isinstance(value, dict) else value for value in values)
    bos, eos = (text if isinstance(text, str) else "" for text in texts)
    return bos, eos
