"""GGUF metadata to tokenizers: exactness against recorded llama.cpp output, merges from scores, and bad metadata."""

from __future__ import annotations

import heapq
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from sixfold.engine.pretokenizers import NAMES
from sixfold.engine.tokenizer import Tokenizer
from sixfold.engine.tokenizer_gguf import build_gguf
from sixfold.errors import ModelFileError, UnsupportedModelError
from sixfold.weights.model_file import open_model
from tests.engine.small_vocabularies import Model, byte_level, sentence_piece

GOLDENS = Path(__file__).parent / "goldens"


def check_goldens(path: Path, name: str) -> Tokenizer:
    with open_model(path) as model:
        tokenizer = Tokenizer.from_model(model)
    for row in json.loads((GOLDENS / f"{name}_tokens.json").read_text()):
        text = row["text"]
        assert tokenizer.encode(text, add_special=False, parse_special=False) == row["plain"], text
        assert tokenizer.encode(text, add_special=False) == row["special"], text
    return tokenizer


@pytest.mark.model
def test_smollm2_tokens_equal_llama_cpp(smollm2_path: Path) -> None:
    tokenizer = check_goldens(smollm2_path, "smollm2")
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.add_bos) == (49152, 1, False)
    assert tokenizer.eos_ids == {0, 2}


@pytest.mark.model
def test_gemma3_tokens_equal_llama_cpp(gemma3_path: Path) -> None:
    tokenizer = check_goldens(gemma3_path, "gemma3")
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.add_bos) == (262144, 2, True)
    assert tokenizer.eos_ids == {1, 106}
    assert tokenizer.encode("hi") == [2, *tokenizer.encode("hi", add_special=False)]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_pre_tokenizer_keeps_the_text(name: str) -> None:
    tokenizer = Tokenizer.from_model(byte_level(name))
    for text in ("It's 12345 o'clock,\r\n\n  THE end...", "人工 café ½ don't", " \t  x ", "a" * 300):
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("smollm", ["It", "'s", " ", "1", "2", "3", "4", " HE", "'", "LL", "  ", " x"]),
        ("gpt-2", ["It", "'s", " 1234", " HE", "'", "LL", "  ", " x"]),
        ("llama-bpe", ["It", "'s", " ", "123", "4", " HE", "'LL", "  ", " x"]),
        ("qwen2", ["It", "'s", " ", "1", "2", "3", "4", " HE", "'LL", "  ", " x"]),
        ("gpt-4o", ["It's", " ", "123", "4", " HE'LL", "  ", " x"]),
        ("default", ["It", "'", "s", " ", "123", "4", " HE", "'", "LL", "  ", " x"]),
    ],
)
def test_pre_tokenizers_cut_where_the_models_do(pre: str, words: list[str]) -> None:
    text = "It's 1234 HE'LL   x"
    pieces = NAMES[pre].build().pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in pieces] == words


def sentence_piece_reference(text: str, scores: dict[str, float]) -> list[str]:
    """The published algorithm: join the neighbours whose union scores best, the leftmost first among equals."""
    symbols: list[str | None] = list(text)

    def following(at: int) -> int | None:
        return next((i for i in range(at + 1, len(symbols)) if symbols[i] is not None), None)

    def candidates() -> list[tuple[float, int, int]]:
        found = []
        for at, symbol in enumerate(symbols):
            after = following(at)
            if symbol is not None and after is not None and (union := f"{symbol}{symbols[after]}") in scores:
                found.append((-scores[union], at, after))
        return found

    while queue := candidates():
        _, at, after = heapq.nsmallest(1, queue)[0]
        symbols[at] = f"{symbols[at]}{symbols[after]}"
        symbols[after] = None
    return [symbol for symbol in symbols if symbol is not None]


@pytest.mark.parametrize("seed", range(60))
def test_merges_from_scores_follow_sentence_piece(seed: int) -> None:
    chance = random.Random(seed)
    pieces = list("abcd▁")
    while len(pieces) < 30:
        union = chance.choice(pieces) + chance.choice(pieces)
        bordered = any(union.startswith(union[-n:]) for n in range(1, len(union)))  # equal cuts could overlap
        if union not in pieces and not bordered:
            pieces.append(union)
    ranked = pieces[5:]
    chance.shuffle(ranked)
    order = ranked + pieces[:5]
    tokenizer = Tokenizer.from_model(sentence_piece(order, add_space_prefix=False))
    scores = {piece: -float(rank) for rank, piece in enumerate(order)}
    for _ in range(20):
        text = "".join(chance.choice("abcd ") for _ in range(chance.randrange(1, 40)))
        ids = tokenizer.encode(text, add_special=False)
        assert [tokenizer.token_text(i) for i in ids] == sentence_piece_reference(text.replace(" ", "▁"), scores)


def test_sentence_piece_falls_back_to_bytes_and_prefixes_a_space() -> None:
    tokenizer = Tokenizer.from_model(sentence_piece())
    names = [tokenizer.token_text(i) for i in tokenizer.encode("hello é")]
    assert names == ["<s>", "▁hello", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("hello é")) == "hello é"
    without = Tokenizer.from_model(sentence_piece(add_space_prefix=False))
    assert [without.token_text(i) for i in without.encode("hello")] == ["<s>", "hello"]


def test_plain_text_cannot_spell_control_or_byte_tokens() -> None:
    pieces = ["<", "/", "s", ">", "</", "s>", "</s", "/s>", "<0", "x4", "1>", "0", "x", "4", "1", "<0x4"]
    tokenizer = Tokenizer.from_model(sentence_piece(pieces, add_space_prefix=False))
    ids = tokenizer.encode("</s><s><0x41>", add_special=False, parse_special=False)
    assert all(i >= 260 for i in ids)
    assert tokenizer.decode(ids) == "</s><s><0x41>"
    assert tokenizer.encode("</s>", add_special=False) == [2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "t5"}, "t5"),
        ({"model": None}, "no tokenizer"),
        ({"pre": "brand-new"}, "brand-new"),
    ],
)
def test_unsupported_tokenizers_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        build_gguf(byte_level(**changes).metadata)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": None},
        {"tokens": []},
        {"tokens": "abc"},
        {"tokens": ["a", "a"], "token_type": [1, 1]},
        {"tokens": ["a", "b\udcff"], "token_type": [1, 1], "merges": []},
        {"token_type": [1, 2]},
        {"merges": None},
        {"merges": ["ab"]},
        {"merges": ["q nothing"]},
        {"bos_token_id": 10**6},
        {"eos_token_id": -1},
    ],
)
def test_contradictory_metadata_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError):
        build_gguf(byte_level(**changes).metadata)


@pytest.mark.parametrize("changes", [{"scores": None}, {"scores": [0.0]}, {"token_type": [6] * 280}])
def test_contradictory_sentence_piece_metadata_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError):
        build_gguf(sentence_piece(**changes).metadata)


def test_scores_that_are_not_numbers_and_endless_pieces_are_refused() -> None:
    with pytest.raises(ModelFileError, match="not a number"):
        build_gguf(sentence_piece(scores=[float("nan")] * 280).metadata)
    with pytest.raises(ModelFileError, match="characters long"):
        build_gguf(sentence_piece(["a", "a" * 100_000]).metadata)


def test_end_tokens_are_control_tokens_only() -> None:
    tokens = ["a", "</s>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1, 4, 3, 3, 3, 3],  # </s> is an HTML tag here
        "tokenizer.ggml.merges": [],
    }
    tokenizer = Tokenizer.from_model(Model(metadata))
    assert tokenizer.eos_ids == {2, 4, 5}  # with the harmony tokens, <|end|> does not end the answer
    assert tokenizer.bos_id is None and not tokenizer.add_bos


def test_a_large_sentence_piece_vocabulary_builds_quickly() -> None:
    pieces = [f"{a}{b}{c}" for a in "abcdefghij" for b in ["", *"klmnopqrst"] for c in ["", *"uvwxyz"]]
    pieces = list(dict.fromkeys([*"klmnopqrstuvwxyz", *pieces]))
    start = time.process_time()
    Tokenizer.from_model(sentence_piece(pieces))
    assert time.process_time() - start < 1.0
