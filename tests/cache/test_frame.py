from hypothesis import given
from hypothesis import strategies as st

from sixfold.cache.frame import CacheKey, decode, encode, overhead

KEY = CacheKey(b"digest", b"all that it depends on")


@given(st.binary(max_size=300), st.binary(max_size=80))
def test_what_was_encoded_is_decoded(payload: bytes, content: bytes) -> None:
    key = CacheKey(b"digest", content)
    blob = encode(key, payload)
    assert decode(key, blob) == payload
    assert len(blob) == len(payload) + overhead(key)


@given(st.data())
def test_no_flipped_bit_gets_through(data: st.DataObject) -> None:
    blob = bytearray(encode(KEY, b"payload" * 9))
    at = data.draw(st.integers(0, 8 * len(blob) - 1))
    blob[at // 8] ^= 1 << at % 8
    assert decode(KEY, bytes(blob)) is None


@given(st.integers(0, 200))
def test_no_torn_entry_gets_through(length: int) -> None:
    blob = encode(KEY, b"payload" * 9)
    assert decode(KEY, blob[:length]) == (b"payload" * 9 if length >= len(blob) else None)
    assert decode(KEY, blob + b"more") is None
    assert decode(KEY, b"\0" * len(blob)) is None


def test_an_entry_of_another_key_is_none_of_this() -> None:
    for content in (b"all that it depends oN", b"all that it depends on.", b"", b"all that it depends o"):
        assert decode(CacheKey(KEY.digest, content), encode(KEY, b"x")) is None
