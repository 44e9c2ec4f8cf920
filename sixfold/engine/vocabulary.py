"""What each token id stands for: its text, its kind, its bytes, and which ids begin and end a sequence.

Owns: the table from id to bytes in the two schemes in use (byte-level alphabet, U+2581 for a space). Must not know:
how text becomes ids, nor where the table was read from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

SPACE = "\u2581"  # how SentencePiece vocabularies write a space

# Tokens that end a generation whatever the metadata says, when they are control tokens (not ordinary text).
# Chat models often name only one of theirs as end of sequence.
END_TEXTS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "</s>",
    "<|end|>", "<|return|>", "<|call|>", "<EOT>", "_<EOT>", "[EOS]", "[EOT]", "<end_of_utterance>",
    "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>", "<turn|>",
)  # fmt: skip


class TokenKind(IntEnum):
    """What a token is for, numbered as in ``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that print stand for themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if chr(byte) not in alphabet)
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


@dataclass(frozen=True)
class Vocabulary:
    """Every token by id. ``kinds`` is one :class:`TokenKind` a token; ids past the table have no text."""

    texts: Sequence[str]
    kinds: bytes
    byte_level: bool  # texts are written in GPT-2's byte alphabet; else U+2581 is a space and <0x0A> a byte
    strip_space: bool = False  # encoding puts a space before the text, so decoding takes one away
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    prefix: tuple[int, ...] = ()  # what encoding puts before the text when special tokens are wanted
    suffix: tuple[int, ...] = ()  # and after it
    added_spaces: bool = False  # user-defined tokens too write a space as U+2581
    special: frozenset[int] = field(init=False)  # ids that leave no text when special tokens are skipped

    def __post_init__(self) -> None:
        hidden = (TokenKind.CONTROL, TokenKind.UNKNOWN)
        object.__setattr__(self, "special", frozenset(i for i, kind in enumerate(self.kinds) if kind in hidden))

    def __len__(self) -> int:
        return len(self.texts)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token adds to the output; part of a character is possible. Raises IndexError."""
        text, kind = self.texts[token_id], self.kinds[token_id]
        if kind == TokenKind.UNUSED:
            return b""
        if kind == TokenKind.BYTE:
            return bytes((int(text[3:5], 16),))
        if kind != TokenKind.NORMAL:
            return (text.replace(SPACE, " ") if self.added_spaces else text).encode()
        if not self.byte_level:
            return text.replace(SPACE, " ").encode()
        try:
            return bytes([_BYTE_OF[char] for char in text])
        except KeyError:  # not written in the alphabet: it stands for itself
            return text.encode()
