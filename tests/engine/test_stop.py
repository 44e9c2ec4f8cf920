from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sixfold.engine.stop import StopStrings


def run(pieces, stops, include=False):
    """(text shown in all, stop string), checking that nothing is shown that is taken back later."""
    search = StopStrings(stops, include)
    shown = ""
    for piece in pieces:
        text, matched = search.feed(piece)
        shown += text
        if matched is not None:
            return shown, matched
    return shown + search.flush(), None


def plain(text, stops, include=False):
    """The same over the whole text, letter by letter: the first end of a match, the longest there."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            stop = max(matches, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def test_a_stop_string_split_over_tokens_is_never_shown():
    assert run(["a b", "c E", "N", "D tail"], ["END"]) == ("a bc ", "END")


def test_include_shows_the_stop_string_and_nothing_after_it():
    assert run(["abc E", "ND tail"], ["END"], include=True) == ("abc END", "END")


def test_what_might_have_become_a_stop_string_is_shown_when_it_does_not():
    search = StopStrings(["END"], False)
    assert search.feed("the EN") == ("the ", None)
    assert search.feed("TITY") == ("ENTITY", None)
    assert search.feed(" E") == (" ", None)
    assert search.flush() == "E"


def test_the_match_that_ends_first_counts():
    assert run(["xabcdy"], ["bcd", "abc"]) == ("x", "abc")
    assert run(["xabc"], ["bc", "abc", "c"]) == ("x", "abc")


def test_overlapping_starts():
    assert run(["aa", "a", "b"], ["aab"]) == ("a", "aab")


@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    include=st.booleans(),
)
def test_the_result_does_not_depend_on_how_the_text_is_cut(pieces, stops, include):
    assert run(pieces, stops, include) == plain("".join(pieces), stops, include)
