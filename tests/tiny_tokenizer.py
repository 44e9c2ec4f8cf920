"""The tokenizer of the tiny models: byte-level BPE with 256 bytes, a few merges and each family's special tokens.

Owns: vocabulary, merges, and how both are written as ``tokenizer.json`` and as GGUF metadata. Must not know: weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers import decoders as token_decoders

# Ordered by rank. "Ġ" is how byte-level BPE writes a space, "Ċ" a newline.
MERGES = """Ġ t|h e|i n|r e|o n|Ġt he|e r|Ġ a|a t|n d|Ġ s|Ġ o|e n|o r|Ġ w|e s|i s|o u|Ġ f|i t|a n|in g|Ġ c|Ġ b|e d|Ġo f
Ġ p|a l|a r|Ġa nd|Ġ in|Ġt o|Ġ m|l l|Ġ h|Ġ d|l e|i c|o m|Ġ re|a s|Ċ Ċ|Ġ Ġ|ĠĠ ĠĠ|i on|en t|v e|H e|l o|He ll|Hell o"""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {"llama-bpe": _WORDS + r"\p{N}{1,3}" + _REST, "qwen2": _WORDS + r"\p{N}" + _REST}

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """What differs between tokenizer families; ``pre`` is the GGUF name of the pre-tokenizer."""

    pre: str
    specials: tuple[str, ...]
    bos: str
    eos: str
    add_bos: bool
    chat_template: str | None = None


FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        "llama-bpe",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
        "<|begin_of_text|>",
        "<|end_of_text|>",
        add_bos=True,
    ),
    "qwen": Family(
        "qwen2", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|endoftext|>", "<|im_end|>", False, CHATML
    ),
    "gemma": Family(
        "gpt-2", ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>", True
    ),
    "plain": Family("gpt-2", ("<unk>", "<s>", "</s>"), "<s>", "</s>", False),
}


def merges() -> list[tuple[str, str]]:
    """The merges, best rank first."""
    pairs = (pair.split(" ") for pair in MERGES.replace("\n", "|").split("|"))
    return [(left, right) for left, right in pairs]


def tokens(family: Family) -> list[str]:
    """Every token by id: bytes, merged tokens, special tokens. Shorter than the model's vocabulary, as in Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*alphabet, *(left + right for left, right in merges()), *family.specials]


def token_id(family: Family, token: str) -> int:
    return tokens(family).index(token)


def write_hf(family: Family, directory: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    vocabulary = {token: index for index, token in enumerate(tokens(family))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges(), fuse_unk=False))
    if family.pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    if pattern := _PATTERNS.get(family.pre):
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = token_decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in family.specials])
    if family.add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, token_id(family, family.bos))]
        )
    tokenizer.save(str(directory / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": family.bos,
        "eos_token": family.eos,
        "add_bos_token": family.add_bos,
        "clean_up_tokenization_spaces": False,
    }
    if family.chat_template:
        settings["chat_template"] = family.chat_template
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def add_to_gguf(family: Family, writer: gguf.GGUFWriter, vocab_size: int) -> None:
    """Write ``tokenizer.ggml.*``; ids that no token has become unused ``[PADn]`` tokens, as converters write them."""
    known = tokens(family)
    padding = [f"[PAD{index}]" for index in range(len(known), vocab_size)]
    normal = len(known) - len(family.specials)
    kinds = [gguf.TokenType.NORMAL] * normal + [gguf.TokenType.CONTROL] * len(family.specials)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(family.pre)
    writer.add_token_list([*known, *padding])
    writer.add_token_types([*kinds, *[gguf.TokenType.UNUSED] * len(padding)])
    writer.add_token_merges([f"{left} {right}" for left, right in merges()])
    writer.add_bos_token_id(token_id(family, family.bos))
    writer.add_eos_token_id(token_id(family, family.eos))
    writer.add_add_bos_token(family.add_bos)
    if family.chat_template:
        writer.add_chat_template(family.chat_template)
