"""Chunks whose surroundings are written once are the chunks that would be written anew."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sixfold.server.completions import CompletionChoices
from sixfold.server.openai import CompletionRequest
from sixfold.server.responses import ResponseHead
from sixfold.server.sampling_fields import StreamOptions
from sixfold.server.stream import ChatEvents, CompletionEvents, Events
from sixfold.types import CompletionOutput, RequestOutput
from tests.server.fake_engine import FakeTokenizer

TEXTS = ["a", 'quo"te', "back\\slash", "line\nbreak", "\u0000", "\u2028", "é🙂", "</s>", '"\\u0000"', ""]
OPTIONS = [StreamOptions(), StreamOptions(include_usage=True), StreamOptions(True, continuous_usage_stats=True)]


def make(kind: str, options: StreamOptions) -> Events:
    head = ResponseHead("id-1", 'a "model" named \u0000', 7, "sixfold-1")
    if kind == "chat":
        return ChatEvents(head, options, False)
    choices = CompletionChoices(CompletionRequest(prompt=["a", "b"], n=2), FakeTokenizer(), [])  # type: ignore[arg-type]
    return CompletionEvents(head, options, choices, False)


def output(texts: tuple[str, str], finish: Any = None) -> RequestOutput:
    choices = tuple(CompletionOutput(i, text, (65,), None, finish) for i, text in enumerate(texts))
    return RequestOutput("r", (1, 2, 3), choices, finish is not None)


def chunks(text: str) -> list[dict[str, Any]]:
    assert text == "" or text.endswith("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-1]]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_every_chunk_is_as_if_it_were_the_first_of_its_kind(kind: str, options: StreamOptions) -> None:
    events = make(kind, options)
    kept, anew = [], []
    for turn, (one, two) in enumerate(zip(TEXTS, reversed(TEXTS), strict=True)):
        for prompt in (0, 1) if kind == "completion" else (0,):
            kept += chunks(events.feed(prompt, output((one, two))))
            events._frames = {} if turn % 2 else events._frames
            anew += [text for text in (one, two) if text]
    content = [c["choices"][0].get("text", c["choices"][0].get("delta", {}).get("content")) for c in kept]
    assert [text for text in content if text] == anew
    slow = make(kind, options)
    again: list[dict[str, Any]] = []
    for one, two in zip(TEXTS, reversed(TEXTS), strict=True):
        for prompt in (0, 1) if kind == "completion" else (0,):
            again += chunks(slow.feed(prompt, output((one, two))))
            slow._frames = {}
    assert kept == again
    assert chunks(events.feed(0, output(("x", ""), "stop"))) == chunks(slow.feed(0, output(("x", ""), "stop")))
    assert events.end() == slow.end()
