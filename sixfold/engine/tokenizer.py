"""Text to token ids and back, and text as it is generated.

Owns: :class:`Tokenizer` and :class:`TokenStream`. Must not know: chat messages, requests, or what a model computes.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from sixfold.engine.tokenizer_gguf import build_gguf
from sixfold.engine.tokenizer_hf import build_hf
from sixfold.engine.vocabulary import Vocabulary
from sixfold.errors import InvalidRequestError, ModelFileError


class ModelSource(Protocol):
    """What a tokenizer needs of a model file."""

    @property
    def kind(self) -> str: ...  # "gguf", or a Hugging Face directory
    @property
    def path(self) -> Path: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...


class Tokenizer:
    """Encodes and decodes with one model's vocabulary. Immutable, so threads may share it."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, vocabulary: Vocabulary) -> None:
        self._parsing = tokenizer
        self._plain = _without_control_tokens(tokenizer)
        self._vocabulary = vocabulary
        self._bytes: list[bytes | None] = [None] * len(vocabulary)  # filled as tokens are met
        self.vocab_size = len(vocabulary)
        self.bos_id = vocabulary.bos_id
        self.eos_ids = vocabulary.eos_ids
        self.add_bos = vocabulary.bos_id is not None and vocabulary.bos_id in vocabulary.prefix

    @classmethod
    def from_model(cls, model: ModelSource) -> Tokenizer:
        """From GGUF metadata, or from ``tokenizer.json`` beside safetensors.

        Raises :class:`~sixfold.errors.UnsupportedModelError` for a tokenizer we cannot reproduce exactly and
        :class:`~sixfold.errors.ModelFileError` for one that contradicts itself.
        """
        if model.kind == "gguf":
            return cls(*build_gguf(model.metadata))
        return cls(*build_hf(model.path, model.metadata))

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of a text.

        ``add_special`` puts BOS (and EOS) around it where the model wants them. With ``parse_special`` the name of a
        control token in the text becomes that token; without it, it is text like any other, so that untrusted text
        cannot end a turn or begin one. Raises InvalidRequestError for text that no UTF-8 can hold.
        """
        tokenizer = self._parsing if parse_special else self._plain
        try:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            raise _not_text(text) from None
        if add_special and (self._vocabulary.prefix or self._vocabulary.suffix):
            return [*self._vocabulary.prefix, *ids, *self._vocabulary.suffix]
        return ids

    def encode_chat(self, text: str) -> list[int]:
        """The ids of a rendered chat template: control tokens parsed, BOS added only if the template wrote none."""
        ids = self.encode(text, add_special=False)
        prefix = self._vocabulary.prefix
        if prefix and ids[:1] != [self.bos_id]:
            return [*prefix, *ids]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True, continuation: bool = False) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD.

        ``skip_special`` leaves control tokens out. SentencePiece models encode a space before the text, which decoding
        takes away again, unless the ids are the ``continuation`` of others. Raises InvalidRequestError for an id that
        is not in the vocabulary.
        """
        special = self._vocabulary.special if skip_special else frozenset()
        data = b"".join([self.token_bytes(i) for i in ids if i not in special])
        if self._vocabulary.strip_space and not continuation and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of one token. Raises InvalidRequestError for an id that is not in the vocabulary."""
        if not 0 <= token_id < self.vocab_size:
            raise InvalidRequestError(
                f"Token id {token_id} is not in the vocabulary", remedy=f"Use ids from 0 to {self.vocab_size - 1}"
            )
        data = self._bytes[token_id]
        if data is None:
            data = self._bytes[token_id] = self._vocabulary.token_bytes(token_id)
        return data

    def token_text(self, token_id: int) -> str:
        """The name of a token as the vocabulary writes it, e.g. ``<|im_end|>``; "" for ids that stand for nothing."""
        return self._vocabulary.texts[token_id] if 0 <= token_id < self.vocab_size else ""

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token, which ``skip_special`` leaves out."""
        return token_id in self._vocabulary.special

    def stream(self, *, skip_special: bool = True, continuation: bool = False) -> TokenStream:
        """A decoder for one sequence as it grows; the arguments are those of :meth:`decode`."""
        special = self._vocabulary.special if skip_special else frozenset()
        return TokenStream(self, special, strip=self._vocabulary.strip_space and not continuation)


class TokenStream:
    """Decodes tokens one at a time and never gives out part of a character.

    What ``feed`` and at last ``flush`` return, joined, equals :meth:`Tokenizer.decode` of all ids.
    """

    __slots__ = ("_decoder", "_known", "_pending", "_special", "_strip", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, special: frozenset[int], *, strip: bool) -> None:
        self._tokenizer = tokenizer
        self._known = tokenizer._bytes
        self._special = special
        self._strip = strip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = False  # the decoder holds the beginning of a character

    def feed(self, token_id: int) -> str:
        """The characters that this token completes. Ids past the vocabulary (padding of the logits) have no text."""
        if token_id in self._special or not 0 <= token_id < len(self._known):
            return ""
        data = self._known[token_id]
        if data is None:
            data = self._tokenizer.token_bytes(token_id)
        if self._strip and data:
            self._strip = False
            if data[0] == 0x20:
                data = data[1:]
        if not self._pending and data.isascii():
            return data.decode("ascii")
        text = self._decoder.decode(data)
        self._pending = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed. The stream is then empty."""
        self._pending = False
        return self._decoder.decode(b"", final=True)


def _without_control_tokens(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A second tokenizer over the same model (shared, not copied) that reads control tokens as text."""
    plain = tokenizers.Tokenizer(tokenizer.model)
    if tokenizer.normalizer is not None:
        plain.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        plain.pre_tokenizer = tokenizer.pre_tokenizer
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    plain.add_tokens([token for _, token in added])
    # ids of tokens the model does not have are given out in order, which must come out the same
    if any(plain.token_to_id(token.content) != i for i, token in added):
        raise ModelFileError("The added tokens of the tokenizer do not follow its vocabulary")
    plain.encode_special_tokens = True
    return plain


def _not_text(text: object) -> InvalidRequestError:
    if not isinstance(text, str):
        return InvalidRequestError(f"The text is of type {type(text).__name__}", remedy="Send a string")
    position = next((i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff"), 0)
    return InvalidRequestError(
        f"The text is not valid Unicode at character {position}",
        cause="it holds half of a surrogate pair, which UTF-8 cannot encode",
        remedy="Send well-formed UTF-8",
    )
