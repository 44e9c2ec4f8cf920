"""Small tokenizers as GGUF metadata: byte-level BPE in the manner of SmolLM2, and SentencePiece with byte tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from sixfold.engine.vocabulary import TokenKind

MERGES = ["Ġ t", "h e", "Ġt he", "i n", "e r", "Ġ a", "Ċ Ċ", "Ã ©"]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@dataclass
class Model:
    """What the tokenizer needs of a model file."""

    metadata: Mapping[str, Any]
    kind: str = "gguf"
    path: Path = field(default=Path("model.gguf"))


def byte_level(pre: str = "smollm", **more: Any) -> Model:
    """Three control tokens (0-2), a user-defined one (3), the 256 bytes, eight merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*CONTROL, "<tool>", *alphabet, *(merge.replace(" ", "") for merge in MERGES)]
    kinds = [TokenKind.CONTROL] * 3 + [TokenKind.USER_DEFINED] + [TokenKind.NORMAL] * (len(tokens) - 4)
    return Model(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
            "tokenizer.ggml.merges": MERGES,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            **{f"tokenizer.ggml.{name}": value for name, value in more.items()},
        }
    )


PIECES = [
    "▁",
    "h",
    "e",
    "l",
    "o",
    "w",
    "r",
    "d",
    "s",
    "<",
    ">",
    "/",
    "he",
    "ll",
    "▁w",
    "or",
    "llo",
    "hello",
    "▁wor",
    "▁hello",
]


def sentence_piece(pieces: list[str] = PIECES, **more: Any) -> Model:
    """<unk> <s> </s>, a user-defined run of newlines (3), 256 byte tokens, then ``pieces``, best score first."""
    tokens = ["<unk>", "<s>", "</s>", "\n\n", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    kinds = [2, 3, 3, 4, *[6] * 256, *[1] * len(pieces)]
    return Model(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.scores": [0.0] * 260 + [-float(rank) for rank in range(len(pieces))],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            **{f"tokenizer.ggml.{name}": value for name, value in more.items()},
        }
    )
