"""Encoding options, decoding, streaming piece by piece, and Hugging Face directories."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from sixfold.engine.tokenizer import Tokenizer
from sixfold.errors import InvalidRequestError, ModelFileError, UnsupportedModelError
from tests.engine.small_vocabularies import MERGES, Model, byte_level, sentence_piece

BYTE_LEVEL = Tokenizer.from_model(byte_level())
SENTENCE_PIECE = Tokenizer.from_model(sentence_piece())
SMALL = {"byte level": BYTE_LEVEL, "sentence piece": SENTENCE_PIECE}
# U+2581 is a space to SentencePiece, and after its user-defined newlines it puts another space
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="▁\n"), max_size=60)
each_tokenizer = pytest.mark.parametrize("tokenizer", SMALL.values(), ids=SMALL)


@each_tokenizer
@given(data=st.data())
def test_stream_joined_is_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    options = {"skip_special": data.draw(st.booleans()), "continuation": data.draw(st.booleans())}
    stream = tokenizer.stream(**options)
    pieces = [stream.feed(i) for i in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids, **options)


@each_tokenizer
@given(text=TEXT)
def test_stream_of_real_text_gives_whole_characters_and_all_of_them(tokenizer: Tokenizer, text: str) -> None:
    stream = tokenizer.stream(skip_special=False)
    shown = ""
    for i in tokenizer.encode(text, add_special=False, parse_special=False):
        shown += stream.feed(i)
        assert text.startswith(shown)  # so no U+FFFD that is not in the text
    assert shown == text and stream.flush() == ""


@each_tokenizer
@given(text=TEXT)
def test_decode_undoes_encode(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert tokenizer.decode(ids, skip_special=False) == text
    assert not any(map(tokenizer.is_special, ids))
    joined = b"".join(map(tokenizer.token_bytes, ids))
    assert joined.decode().removeprefix(" " if tokenizer is SENTENCE_PIECE else "") == text


def test_half_a_character_waits_and_a_broken_one_becomes_a_replacement() -> None:
    euro = BYTE_LEVEL.encode("€", add_special=False)
    assert len(euro) == 3
    stream = BYTE_LEVEL.stream()
    assert [stream.feed(i) for i in euro] == ["", "", "€"]
    assert stream.feed(euro[0]) == ""
    letter = BYTE_LEVEL.encode("x", add_special=False)[0]
    assert stream.feed(letter) == "\ufffdx"
    assert stream.feed(euro[0]) == "" and stream.flush() == "\ufffd" and stream.flush() == ""


def test_special_tokens_are_skipped_or_shown_and_padding_ids_have_no_text() -> None:
    stream = BYTE_LEVEL.stream()
    assert stream.feed(2) == "" and stream.feed(3) == "<tool>" and stream.feed(10**6) == "" and stream.feed(-1) == ""
    assert BYTE_LEVEL.stream(skip_special=False).feed(2) == "<|im_end|>"
    assert BYTE_LEVEL.decode([2, 3]) == "<tool>"
    assert BYTE_LEVEL.decode([2, 3], skip_special=False) == "<|im_end|><tool>"
    assert BYTE_LEVEL.token_text(2) == "<|im_end|>" and BYTE_LEVEL.token_text(10**6) == ""


def test_the_space_that_sentence_piece_adds_is_taken_away_once() -> None:
    ids = SENTENCE_PIECE.encode(" hello", add_special=False)
    assert SENTENCE_PIECE.decode(ids) == " hello"
    word = SENTENCE_PIECE.encode("hello", add_special=False)
    assert SENTENCE_PIECE.decode(word) == "hello"
    assert SENTENCE_PIECE.decode(word, continuation=True) == " hello"
    assert SENTENCE_PIECE.decode([1, *word, *word]) == "hello hello"


def test_control_tokens_are_parsed_only_when_asked() -> None:
    text = "a<|im_end|><tool>"
    parsed = BYTE_LEVEL.encode(text)
    assert parsed[1:] == [2, 3]
    plain = BYTE_LEVEL.encode(text, parse_special=False)
    assert 2 not in plain and plain[-1] == 3  # a user-defined token is text in any case
    assert BYTE_LEVEL.decode(plain) == text


def test_bos_is_added_once() -> None:
    tokenizer = Tokenizer.from_model(byte_level(add_bos_token=True, add_eos_token=True))
    assert tokenizer.add_bos
    ids = tokenizer.encode("a", add_special=False)
    assert tokenizer.encode("a") == [1, *ids, 2]
    assert tokenizer.encode_chat("a") == [1, *ids]
    assert tokenizer.encode_chat("<|im_start|>a") == [1, *ids]
    assert BYTE_LEVEL.encode_chat("a") == ids and not BYTE_LEVEL.add_bos
    assert SENTENCE_PIECE.add_bos and SENTENCE_PIECE.encode("") == [1]


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", b"bytes", None, 7, ["a"]])
def test_what_is_not_text_is_refused(text: Any) -> None:
    for parse in (True, False):
        with pytest.raises(InvalidRequestError):
            BYTE_LEVEL.encode(text, parse_special=parse)


def test_the_error_says_where_the_surrogate_is() -> None:
    with pytest.raises(InvalidRequestError, match="character 3"):
        BYTE_LEVEL.encode("abc\ud83d")


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_unknown_ids_are_refused(token_id: int) -> None:
    with pytest.raises(InvalidRequestError, match=str(token_id)):
        BYTE_LEVEL.decode([token_id])
    with pytest.raises(InvalidRequestError):
        BYTE_LEVEL.token_bytes(token_id)


def test_threads_share_one_tokenizer() -> None:
    expected = [BYTE_LEVEL.encode("the <|im_end|> cat", parse_special=parse) for parse in (True, False)]
    wrong: list[int] = []

    def work(parse: bool) -> None:
        wrong.extend(
            1 for _ in range(200)
            if BYTE_LEVEL.encode("the <|im_end|> cat", parse_special=parse) != expected[0 if parse else 1]
        )  # fmt: skip

    threads = [threading.Thread(target=work, args=(parse,)) for parse in (True, False, True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def save_byte_level(directory: Path, **settings: Any) -> Model:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in MERGES)]
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in MERGES)]
    library = Library(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    library.add_special_tokens(["<|begin|>", "<|im_end|>", "<|stop|>"])
    begin = library.token_to_id("<|begin|>")
    library.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    library.enable_truncation(4)
    library.save(str(directory / "tokenizer.json"))
    values = {"bos_token": {"content": "<|begin|>"}, "eos_token": "<|im_end|>", **settings}
    (directory / "tokenizer_config.json").write_text(json.dumps(values))
    return Model({}, "safetensors", directory)


def test_hugging_face_byte_level(tmp_path: Path) -> None:
    model = save_byte_level(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [267, 99999]}')
    tokenizer = Tokenizer.from_model(model)
    begin, end, stop = (
        tokenizer.encode(text, add_special=False)[0] for text in ("<|begin|>", "<|im_end|>", "<|stop|>")
    )
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.eos_ids) == (begin, True, {end, stop})
    ids = tokenizer.encode("<think>the inner café</think>")
    assert ids[0] == begin and len(ids) > 8  # truncation in the file is not for us
    assert tokenizer.decode(ids) == "<think>the inner café</think>"
    plain = tokenizer.encode("<|im_end|><think>", add_special=False, parse_special=False)
    assert end not in plain and tokenizer.decode(plain) == "<|im_end|><think>"


def test_settings_override_what_the_post_processor_adds(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_model(save_byte_level(tmp_path, add_bos_token=False, add_eos_token=True))
    assert not tokenizer.add_bos
    assert tokenizer.decode(tokenizer.encode("a"), skip_special=False) == "a<|im_end|>"


def test_hugging_face_sentence_piece(tmp_path: Path) -> None:
    metadata = sentence_piece().metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [("l", "l"), ("▁", "w"), ("o", "r")]
    library = Library(
        models.BPE(
            vocab={text: i for i, text in enumerate(tokens)},
            merges=merges,
            byte_fallback=True,
            fuse_unk=True,
            unk_token="<unk>",
        )
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}')
    tokenizer = Tokenizer.from_model(Model({"eos_token_id": 2}, "safetensors", tmp_path))
    ids = tokenizer.encode("hell wörld")
    assert ids[0] == 1 and tokenizer.eos_ids == {2}
    assert tokenizer.decode(ids) == "hell wörld" == library.decode(ids)


def test_bad_hugging_face_directories(tmp_path: Path) -> None:
    model = Model({}, "safetensors", tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"no tokenizer\.json"):
        Tokenizer.from_model(model)
    for content in ("{", "[]", "{}", '{"model": {"type": "Nonsense"}}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ModelFileError):
            Tokenizer.from_model(model)
    save_byte_level(tmp_path)
    source = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(source | {"decoder": {"type": "WordPiece", "prefix": "##"}}))
    with pytest.raises((UnsupportedModelError, ModelFileError)):
        Tokenizer.from_model(model)
