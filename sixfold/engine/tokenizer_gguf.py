"""A tokenizer from the metadata of a GGUF file (``tokenizer.ggml.*``), built with the ``tokenizers`` library.

Owns: what those keys mean, and merges for SentencePiece vocabularies, which carry scores instead. Must not know:
where the metadata came from, or how tokens are streamed. The keys are described in
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; llama.cpp gives the defaults for keys that are absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, normalizers

from sixfold.engine.pretokenizers import pre_tokenizer
from sixfold.engine.vocabulary import END_TEXTS, SPACE, TokenKind, Vocabulary
from sixfold.errors import ModelFileError, UnsupportedModelError

Metadata = Mapping[str, Any]
MAX_PIECE = 1024  # characters; a longer "token" is an attack on the quadratic search for merges
_KINDS = [int(kind) for kind in TokenKind]
_ADDED = (TokenKind.CONTROL, TokenKind.UNKNOWN, TokenKind.USER_DEFINED)


@dataclass(frozen=True)
class _Table:
    """The checked arrays of the file."""

    texts: list[str]
    kinds: bytes
    ids: dict[str, int]


def build_gguf(metadata: Metadata) -> tuple[Tokenizer, Vocabulary]:
    """The library's tokenizer with every added token, and the vocabulary.

    Raises :class:`UnsupportedModelError` for a tokenizer or pre-tokenizer we do not have, and
    :class:`ModelFileError` for arrays that are missing or contradict each other.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise UnsupportedModelError(
            f"The tokenizer model {model!r} is not supported" if model else "The file has no tokenizer",
            remedy="Use a model whose tokenizer.ggml.model is gpt2 or llama, or its Hugging Face directory",
        )
    table = _read_table(metadata)
    try:
        tokenizer = _byte_level(metadata, table) if model == "gpt2" else _sentence_piece(metadata, table)
        tokenizer.add_tokens(
            [
                AddedToken(text, special=kind != TokenKind.USER_DEFINED, normalized=False)
                for text, kind in zip(table.texts, table.kinds, strict=True)
                if kind in _ADDED
            ]
        )
    except (ModelFileError, UnsupportedModelError):
        raise
    except Exception as error:  # the library raises plain Exception
        raise ModelFileError("The tokenizer in the file is inconsistent", cause=str(error)[:300]) from None
    return tokenizer, _vocabulary(metadata, table, byte_level=model == "gpt2")


def _read_table(metadata: Metadata) -> _Table:
    texts = _array(metadata, "tokens")
    if texts is None or len(texts) == 0:
        raise ModelFileError("The file has no tokenizer.ggml.tokens", remedy="Convert the model again")
    texts = [str(text) or f"[EMPTY_{index}]" for index, text in enumerate(texts)]
    ids = {text: index for index, text in enumerate(texts)}
    if len(ids) != len(texts):
        raise ModelFileError(
            f"{len(texts) - len(ids)} tokens of the file have the same text", remedy="Convert the model again"
        )
    types = _array(metadata, "token_type", len(texts))
    kinds = bytes([TokenKind.NORMAL]) * len(texts)
    if types is not None:
        given = np.asarray(types).astype(np.int64)
        kinds = np.where(np.isin(given, _KINDS), given, TokenKind.UNUSED).astype(np.uint8).tobytes()
    for index in np.flatnonzero(np.frombuffer(kinds, np.uint8) == TokenKind.BYTE):
        if not _is_byte(texts[index]):
            raise ModelFileError(f"Token {index} ({texts[index]!r}) is marked as a byte but does not look like <0x0A>")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise ModelFileError("A token of the file is not valid UTF-8", remedy="Convert the model again") from None
    return _Table(texts, kinds, ids)


def _array(metadata: Metadata, name: str, length: int | None = None) -> Any:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if values is None:
        return None
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise ModelFileError(f"tokenizer.ggml.{name} is not an array", remedy="Convert the model again")
    if length is not None and len(values) != length:
        raise ModelFileError(f"tokenizer.ggml.{name} has {len(values)} entries for {length} tokens")
    return values


def _is_byte(text: str) -> bool:
    return (
        len(text) == 6
        and text[:3] == "<0x"
        and text[5] == ">"
        and all(c in "0123456789ABCDEFabcdef" for c in text[3:5])
    )


def _byte_level(metadata: Metadata, table: _Table) -> Tokenizer:
    pre = pre_tokenizer(str(metadata.get("tokenizer.ggml.pre", "default")))
    lines = _array(metadata, "merges")
    if lines is None:
        raise ModelFileError("The file has no tokenizer.ggml.merges", remedy="Convert the model again")
    merges = []
    for line in lines:
        first, space, second = line.partition(" ")
        if not first:  # it begins with a space, which belongs to the first token
            first, space, second = line[1:].partition(" ")
            first = " " + first
        if not space:
            raise ModelFileError(f"The merge {line!r} in the file is not two tokens")
        merges.append((first, second))
    tokenizer = Tokenizer(models.BPE(vocab=table.ids, merges=merges, ignore_merges=pre.ignore_merges))
    tokenizer.pre_tokenizer = pre.build()
    if (normalizer := pre.normalizer()) is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def _sentence_piece(metadata: Metadata, table: _Table) -> Tokenizer:
    scores = _array(metadata, "scores", len(table.texts))
    if scores is None:
        raise ModelFileError("The file has no tokenizer.ggml.scores", remedy="Convert the model again")
    unknown = _token_id(metadata, "unknown_token_id", table, default=0)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=table.ids,
            merges=merges_from_scores(table.texts, table.kinds, scores),
            byte_fallback=True,
            fuse_unk=True,
            unk_token=None if unknown is None else table.texts[unknown],
        )
    )
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def merges_from_scores(texts: Sequence[str], kinds: bytes, scores: Sequence[float]) -> list[tuple[str, str]]:
    """Merges, best first, that rebuild SentencePiece's order: the pair whose union scores highest is joined first.

    A union may be cut in several places, and all cuts share its score. Only ordinary pieces are made: never a control,
    user-defined or byte token, so that plain text cannot spell one.
    """
    ordinary = [i for i, kind in enumerate(kinds) if kind in (TokenKind.NORMAL, TokenKind.UNUSED)]
    pieces = {texts[i] for i in ordinary}
    values = [float(score) for score in scores]
    if any(value != value for value in values):
        raise ModelFileError("A score in tokenizer.ggml.scores is not a number")
    ordinary.sort(key=lambda i: -values[i])  # stable: equal scores stay in the order of their ids
    merges = []
    for i in ordinary:
        text = texts[i]
        if len(text) > MAX_PIECE:
            raise ModelFileError(f"Token {i} is {len(text)} characters long", cause=f"at most {MAX_PIECE} are sane")
        for cut in range(1, len(text)):
            if text[:cut] in pieces and text[cut:] in pieces:
                merges.append((text[:cut], text[cut:]))
    return merges


def _token_id(metadata: Metadata, name: str, table: _Table, default: int | None = None) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if value is None:
        return None
    index = int(value)
    if not 0 <= index < len(table.texts):
        if f"tokenizer.ggml.{name}" not in metadata:
            return None
        raise ModelFileError(f"tokenizer.ggml.{name} is {index}, but there are {len(table.texts)} tokens")
    return index


def _vocabulary(metadata: Metadata, table: _Table, *, byte_level: bool) -> Vocabulary:
    bos = _token_id(metadata, "bos_token_id", table, default=None if byte_level else 1)
    eos = _token_id(metadata, "eos_token_id", table, default=None if byte_level else 2)
    pre = pre_tokenizer(str(metadata.get("tokenizer.ggml.pre", "default"))) if byte_level else None
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", pre.add_bos if pre else True))
    add_eos = bool(metadata.get("tokenizer.ggml.add_eos_token", False))
    named = [_token_id(metadata, name, table) for name in ("eot_token_id", "eom_token_id")]
    ends = {table.ids[text] for text in END_TEXTS if text in table.ids}
    ends = end_ids({i: table.texts[i] for i in ends if table.kinds[i] == TokenKind.CONTROL})
    return Vocabulary(
        texts=table.texts,
        kinds=table.kinds,
        byte_level=byte_level,
        strip_space=not byte_level and bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        bos_id=bos,
        eos_ids=frozenset(ends | {i for i in (eos, *named) if i is not None}),
        prefix=(bos,) if add_bos and bos is not None else (),
        suffix=(eos,) if add_eos and eos is not None else (),
    )


def end_ids(control: Mapping[int, str]) -> set[int]:
    """Which of these control tokens end a generation. In OpenAI's harmony format ``<|end|>`` only ends a message."""
    ends = {i for i, text in control.items() if text in END_TEXTS}
    texts = {control[i] for i in ends}
    if {"<|return|>", "<|call|>"} <= texts:
        ends = {i for i in ends if control[i] != "<|end|>"}
    return ends
