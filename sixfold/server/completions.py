"""The choices of ``/v1/completions``, whole or piece by piece, with the prompt echoed in front if it was asked for.

Owns: what a text-completion choice says. Must not know: HTTP, SSE, or how a request ran.
"""

from __future__ import annotations

from typing import Any

from sixfold.server.openai import CompletionRequest
from sixfold.server.responses import CompletionLogprobs, TokenBytes, join_logprobs, prompt_logprobs
from sixfold.types import CompletionOutput, RequestOutput


class CompletionChoices:
    """Turns the outputs of all prompts of one request into choices; keeps each choice's place in its text.

    Choice ``i`` of prompt ``p`` has the index ``p * n + i``, as clients that send several prompts expect.
    """

    def __init__(self, request: CompletionRequest, tokenizer: TokenBytes, prompt_texts: list[str]) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._prompt_texts = prompt_texts
        self._columns: dict[int, CompletionLogprobs] = {}
        # In a stream only the first delta has the prompt's log-probabilities, and a choice may not be in it yet.
        self._prompt_positions: dict[int, RequestOutput] = {}

    def choices(self, prompt: int, output: RequestOutput) -> list[dict[str, Any]]:
        """One dictionary a choice of ``output``: everything, or what is new."""
        return [self.choice(prompt, output, choice) for choice in output.outputs]

    def choice(self, prompt: int, output: RequestOutput, choice: CompletionOutput) -> dict[str, Any]:
        self._prompt_positions.setdefault(prompt, output)
        return self._choice(prompt, choice)

    def text_only(self, prompt: int, index: int, text: str) -> dict[str, Any]:
        """A later delta of choice ``index`` of a prompt, with nothing in it but text."""
        return _fields(prompt * self._request.n + index, text)

    def index(self, prompt: int, choice: CompletionOutput) -> int:
        return prompt * self._request.n + choice.index

    def _choice(self, prompt: int, choice: CompletionOutput) -> dict[str, Any]:
        request = self._request
        index = self.index(prompt, choice)
        text, logprobs = "", None
        columns = self._columns.get(index)
        if columns is None:
            columns = CompletionLogprobs(self._tokenizer, request.logprobs or 0, request.return_tokens_as_token_ids)
            self._columns[index] = columns
            if request.echo:
                text, logprobs = self._echo(prompt, columns)
        if not request.only_prompt:
            text += choice.text
            if choice.logprobs is not None:
                logprobs = join_logprobs(logprobs, columns.add(choice.logprobs, choice.token_ids))
        if request.only_prompt:
            return _fields(index, text, logprobs, "length" if choice.finish_reason else None)
        return _fields(index, text, logprobs, choice.finish_reason, choice.stop_reason)

    def _echo(self, prompt: int, columns: CompletionLogprobs) -> tuple[str, dict[str, Any] | None]:
        first = self._prompt_positions[prompt]
        logprobs = None
        if self._request.logprobs is not None and first.prompt_logprobs is not None:
            logprobs = columns.add(first.prompt_logprobs, first.prompt_token_ids)
        return self._prompt_texts[prompt], logprobs

    def with_prompt_logprobs(self, prompt: int, output: RequestOutput) -> list[dict[str, Any]]:
        """For a whole response: the choices with vLLM's ``prompt_logprobs`` beside each, if asked for."""
        asked = self._request.prompt_logprobs is not None
        extra = {"prompt_logprobs": prompt_logprobs(output.prompt_logprobs) if asked else None}
        return [{**choice, **extra} for choice in self.choices(prompt, output)]


def _fields(
    index: int,
    text: str,
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
    stop_reason: int | str | None = None,
) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
        "stop_reason": stop_reason,
    }
