"""Engine outputs as OpenAI's JSON: whole responses, log-probabilities, usage, model lists.

Owns: the shapes. Must not know: HTTP, streaming, or how a request ran.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, Protocol

from sixfold.types import CompletionOutput, PositionLogprobs, RequestOutput, TokenLogprob

try:
    VERSION = version("sixfold")
except PackageNotFoundError:  # run from a source tree that was never installed
    VERSION = "0+unknown"


def fingerprint(approximations: Sequence[str]) -> str:
    """Clients want a string; it changes when the same seed may give other tokens, and names what is approximated."""
    return "-".join((f"sixfold-{VERSION}", *approximations))


_FLOOR = -9999.0  # JSON has no -inf


class TokenBytes(Protocol):
    """What is needed of a tokenizer here."""

    @property
    def bos_id(self) -> int | None: ...
    def token_bytes(self, id: int, /) -> bytes: ...


@dataclass(frozen=True)
class ResponseHead:
    """What every response and every chunk of one request has in common."""

    id: str
    model: str
    created: int
    fingerprint: str

    @classmethod
    def new(cls, prefix: str, model: str, fingerprint: str) -> ResponseHead:
        return cls(f"{prefix}-{uuid.uuid4().hex}", model, int(time.time()), fingerprint)

    def fields(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


class PromptCounts(NamedTuple):
    """Tokens of a prompt; None: not looked for."""

    prompt: int
    cached: int | None
    reused: int | None
    recomputed: int | None

    @classmethod
    def of(cls, output: RequestOutput) -> PromptCounts:
        return cls(
            len(output.prompt_token_ids), output.num_cached_tokens, output.num_reused_tokens,
            output.num_recomputed_tokens,
        )  # fmt: skip


def usage(prompts: Sequence[PromptCounts], completion_tokens: int) -> dict[str, Any]:
    """Over the prompts of a request. Without a prefix cache there are no details; with one, 0 is said."""
    prompt_tokens = sum(counts.prompt for counts in prompts)
    sums = {
        "cached_tokens": _sum(counts.cached for counts in prompts),
        "reused_tokens": _sum(counts.reused for counts in prompts),
        "recomputed_tokens": _sum(counts.recomputed for counts in prompts),
    }
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {name: count for name, count in sums.items() if count is not None} or None,
    }


def usage_of(outputs: Sequence[RequestOutput], *, only_prompt: bool = False) -> dict[str, Any]:
    return usage(
        [PromptCounts.of(output) for output in outputs],
        0 if only_prompt else sum(map(generated_tokens, outputs)),
    )


def generated_tokens(output: RequestOutput) -> int:
    """Those of choices that are not given back count too: they were computed."""
    return output.discarded_tokens + sum(len(choice.token_ids) for choice in output.outputs)


def _sum(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _name(token: TokenLogprob, as_id: bool) -> str:
    return f"token_id:{token.token_id}" if as_id else token.text


def chat_logprobs(positions: Sequence[PositionLogprobs], as_id: bool) -> dict[str, Any]:
    def entry(token: TokenLogprob) -> dict[str, Any]:
        logprob = max(token.logprob, _FLOOR)
        return {"token": _name(token, as_id), "logprob": logprob, "bytes": list(token.bytes)}

    return {
        "content": [{**entry(p.chosen), "top_logprobs": [entry(token) for token in p.top]} for p in positions],
        "refusal": None,
    }


@dataclass
class CompletionLogprobs:
    """Builds the older logprobs shape piece by piece; ``text_offset`` counts characters of the returned text.

    A token that is part of a character gets the offset of that character, so offsets never run ahead of the text.
    """

    tokenizer: TokenBytes
    alternatives: int
    as_id: bool
    _characters: int = field(default=0, init=False)  # characters begun so far

    def add(self, positions: Sequence[PositionLogprobs | None], token_ids: Sequence[int]) -> dict[str, Any]:
        """A position of None is the first prompt token: it has a place in the lists, but no probability."""
        columns: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for position, token_id in zip(positions, token_ids, strict=True):
            raw = self.tokenizer.token_bytes(token_id)
            logprob = top = None
            if position is None:
                name = self._key(TokenLogprob(token_id, 0.0, 0, raw.decode("utf-8", "replace"), raw))
            else:
                name, logprob = self._key(position.chosen), max(position.chosen.logprob, _FLOOR)
                shown = (*position.top[: self.alternatives], position.chosen)
                top = {self._key(token): max(token.logprob, _FLOOR) for token in shown}
            row = (name, logprob, top, self._advance(token_id, raw))
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
        return columns

    def _key(self, token: TokenLogprob) -> str:
        """Part of a character is written as OpenAI did: with U+FFFD, all of them would share one key."""
        if "\ufffd" in token.text and not self.as_id:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
        return _name(token, self.as_id)

    def _advance(self, token_id: int, raw: bytes) -> int:
        starts_inside = bool(raw) and raw[0] & 0xC0 == 0x80
        offset = max(self._characters - starts_inside, 0)
        if token_id != self.tokenizer.bos_id:  # the returned text does not show it
            self._characters += sum(byte & 0xC0 != 0x80 for byte in raw)
        return offset


def join_logprobs(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    if first is None or second is None:
        return first or second
    return {name: first[name] + second[name] for name in first}


def prompt_logprobs(positions: Sequence[PositionLogprobs | None] | None) -> list[Any] | None:
    """vLLM's shape: null for the first token, then an object from token id to its log-probability."""
    if positions is None:
        return None

    def entry(token: TokenLogprob) -> dict[str, Any]:
        return {"logprob": max(token.logprob, _FLOOR), "rank": token.rank, "decoded_token": token.text}

    return [p and {str(t.token_id): entry(t) for t in (*p.top, p.chosen)} for p in positions]


def chat_choice(choice: CompletionOutput, as_id: bool) -> dict[str, Any]:
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None, "tool_calls": None},
        "logprobs": None if choice.logprobs is None else chat_logprobs(choice.logprobs, as_id),
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }


def chat_response(head: ResponseHead, output: RequestOutput, as_id: bool) -> dict[str, Any]:
    return {
        **head.fields("chat.completion"),
        "choices": [chat_choice(choice, as_id) for choice in output.outputs],
        "usage": usage_of([output]),
        "prompt_logprobs": prompt_logprobs(output.prompt_logprobs),
    }


def model_card(name: str, root: str, created: int, max_model_len: int, parent: str | None = None) -> dict[str, Any]:
    """``parent``: the model that an adapter changes."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "sixfold",
        "root": root,
        "parent": parent,
        "max_model_len": max_model_len,
    }
