from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sixfold.engine.prefix_key import TOKEN_BYTES, PrefixRoot, chain, pack


def test_keys_say_everything():
    root = PrefixRoot("m", "f16", "", None, None, "s")
    others = [
        PrefixRoot("m"), PrefixRoot("n", salt="s"), PrefixRoot("m", "int8", salt="s"), PrefixRoot("m", lora="s"),
        PrefixRoot("m", media="s"), PrefixRoot("m", numerics="s"), PrefixRoot("m", lora="", salt="s"),
        PrefixRoot("ms", salt=""),
        PrefixRoot("m", salt="s\0"), PrefixRoot("m", salt="\ud800"),
    ]  # fmt: skip
    keys = {one.key() for one in (root, *others)}
    assert len(keys) == 1 + len(others)
    assert root.key() == PrefixRoot("m").of("s", None).key() != PrefixRoot("m").of(None, "a").key()
    assert chain(root.key(), pack([1, 2])) != chain(root.key(), pack([2, 1]))
    assert chain(chain(root.key(), pack([1])), pack([2])) != chain(root.key(), pack([1, 2]))


@given(one=st.lists(st.integers(0, 2**31 - 1), max_size=20), other=st.lists(st.integers(0, 2**31 - 1), max_size=20))
def test_packed_tokens_are_equal_and_begin_alike_as_tokens_do(one, other):
    assert len(pack(one)) == TOKEN_BYTES * len(one)
    assert (pack(one) == pack(other)) == (one == other)
    assert pack(one + other).startswith(pack(one))
