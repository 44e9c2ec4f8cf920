"""Drafts from the text itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sixfold.engine.prompt_lookup import SHORTEST, TokenIndex


def longest_earlier(tokens: list[int]) -> int:
    """By brute force: the length of the longest end of the text that ends somewhere before too."""
    best = 0
    for place in range(1, len(tokens)):
        match = 0
        while match < place and tokens[place - 1 - match] == tokens[len(tokens) - 1 - match]:
            match += 1
        best = max(best, match)
    return best if best >= SHORTEST else 0


@given(tokens=st.lists(st.integers(0, 2), max_size=60), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_the_longest_match_is_found_however_the_text_grows(tokens: list[int], cuts: list[int]) -> None:
    index = TokenIndex(tried=1000)
    for end in [*sorted(cuts), len(tokens)]:
        text = tokens[:end]
        source = index.follow(text)
        wanted = longest_earlier(text)
        assert index.match == wanted
        assert (source >= 0) == (wanted > 0)
        if source >= 0:
            assert text[source - wanted : source] == text[len(text) - wanted :]
            assert source < len(text)


def test_few_places_are_tried() -> None:
    text = [1, 2, 3, 4, 9] + [1, 2, 3, 5] * 40 + [9, 1, 2, 3]
    index = TokenIndex(tried=2)
    source = index.follow(text)
    assert index.match >= SHORTEST
    assert text[source - index.match : source] == text[-index.match :]
