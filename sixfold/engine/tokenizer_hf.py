"""A tokenizer from a Hugging Face directory: ``tokenizer.json`` and the settings beside it.

Owns: what those files mean for special tokens and decoding. Must not know: weights or GGUF.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sixfold.engine.tokenizer_gguf import end_ids
from sixfold.engine.vocabulary import SPACE, TokenKind, Vocabulary
from sixfold.errors import ModelFileError, UnsupportedModelError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} if there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path.name} cannot be read", cause=str(error)[:300]) from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path.name} is not a JSON object")
    return value


def build_hf(directory: Path, config: Mapping[str, Any]) -> tuple[Tokenizer, Vocabulary]:
    """The library's tokenizer and the vocabulary; ``config`` is the parsed ``config.json``."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedModelError(
            "The model has no tokenizer.json", remedy="Save it with the fast tokenizer of transformers, or use a GGUF"
        )
    source = read_json(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        probe = tokenizer.encode("").ids  # what the post-processor puts around the text
    except Exception as error:  # the library raises plain Exception
        raise ModelFileError("tokenizer.json cannot be used", cause=str(error)[:300]) from None
    settings = read_json(directory / "tokenizer_config.json")
    scheme = _Decoder(source.get("decoder"))
    texts, kinds = _tokens(tokenizer, byte_tokens=scheme.byte_tokens)
    bos = _named(tokenizer, settings.get("bos_token"))
    eos = _named(tokenizer, settings.get("eos_token"))
    prefix, suffix = _around(probe, bos, eos, settings)
    control = {i: texts[i] for i, kind in enumerate(kinds) if kind == TokenKind.CONTROL}
    ends = end_ids(control) | ({eos} if eos is not None else set())
    for source_of_ids in (config, read_json(directory / "generation_config.json")):
        ends |= {i for i in _id_list(source_of_ids.get("eos_token_id")) if i < len(texts)}
    vocabulary = Vocabulary(
        texts=texts,
        kinds=bytes(kinds),
        byte_level=scheme.byte_level,
        strip_space=scheme.strip_space,
        bos_id=bos,
        eos_ids=frozenset(ends),
        prefix=prefix,
        suffix=suffix,
        added_spaces=not scheme.byte_level,
    )
    return tokenizer, vocabulary


def _tokens(tokenizer: Tokenizer, *, byte_tokens: bool) -> tuple[list[str], bytearray]:
    vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    size = max(vocab.values(), default=-1) + 1
    if size == 0 or size > 4 * len(vocab) + 1024:
        raise ModelFileError(f"tokenizer.json has {len(vocab)} tokens with ids up to {size - 1}")
    texts = [""] * size
    kinds = bytearray([TokenKind.UNUSED]) * size  # ids that no token has
    for text, index in vocab.items():
        texts[index] = text
        is_byte = byte_tokens and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        kinds[index] = TokenKind.BYTE if is_byte else TokenKind.NORMAL
    for index, token in tokenizer.get_added_tokens_decoder().items():
        texts[index] = token.content
        kinds[index] = TokenKind.CONTROL if token.special else TokenKind.USER_DEFINED
    return texts, kinds


class _Decoder:
    """Which byte scheme the decoder of a ``tokenizer.json`` implies. Raises for schemes that are not exact bytes."""

    def __init__(self, decoder: Any) -> None:
        steps = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
        kinds = {step.get("type"): step for step in steps if isinstance(step, dict)}
        self.byte_level = "ByteLevel" in kinds
        self.byte_tokens = "ByteFallback" in kinds
        meta = kinds.get("Metaspace")
        replaced = kinds.get("Replace", {})
        spaces = replaced.get("pattern", {}).get("String") == SPACE and replaced.get("content") == " "
        if not self.byte_level and not spaces and (meta is None or meta.get("replacement", SPACE) != SPACE):
            name = decoder.get("type") if isinstance(decoder, dict) else decoder
            raise UnsupportedModelError(
                f"The decoder {name!r} of tokenizer.json is not supported",
                cause="tokens must map to bytes one by one (ByteLevel, or SentencePiece's U+2581)",
            )
        prepends = meta is not None and meta.get("prepend_scheme", "always") != "never"
        self.strip_space = not self.byte_level and (kinds.get("Strip", {}).get("start") == 1 or prepends)


def _around(
    probe: list[int], bos: int | None, eos: int | None, settings: Mapping[str, Any]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before and after a text: as the post-processor has it, unless the settings say otherwise."""
    cut = len(probe)
    if probe and eos is not None and probe[-1] == eos and (len(probe) > 1 or eos != bos):
        cut -= 1
    prefix, suffix = tuple(probe[:cut]), tuple(probe[cut:])
    add_bos, add_eos = settings.get("add_bos_token"), settings.get("add_eos_token")
    if add_bos is True and bos is not None and bos not in prefix:
        prefix = (bos, *prefix)
    elif add_bos is False:
        prefix = tuple(i for i in prefix if i != bos)
    if add_eos is True and eos is not None and not suffix:
        suffix = (eos,)
    elif add_eos is False:
        suffix = ()
    return prefix, suffix


def _named(tokenizer: Tokenizer, token: Any) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(text) if isinstance(text, str) else None


def _id_list(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [i for i in values if type(i) is int and i >= 0]
