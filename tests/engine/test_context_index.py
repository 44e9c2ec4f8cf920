"""Common runs of a prompt and cached sequences: what is found is true, maximal, and never another tenant's."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.engine import context_index
from sixfold.engine.context_index import CANDIDATES, ContextIndex
from sixfold.engine.prefix_key import PrefixRoot, pack
from sixfold.engine.prefix_tree import Entry, PrefixTree
from sixfold.runtime.batch import PAGE_SIZE

ROOT = PrefixRoot("model")


def enter(tree: PrefixTree, tokens: list[int], root: PrefixRoot = ROOT, page: int = 0) -> list[Entry]:
    """A cached sequence: its entries."""
    entry, entries = tree.root(root), []
    for at in range(0, len(tokens), PAGE_SIZE):
        found, _ = tree.enter(entry, pack(tokens[at : at + PAGE_SIZE]), page + at)
        assert found is not None
        entry = found
        entries.append(entry)
    return entries


def donor_tokens(entry: Entry) -> list[int]:
    parts: list[bytes] = []
    at: Entry | None = entry
    while at is not None and at.parent is not None:
        parts.insert(0, at.tokens)
        at = at.parent
    return list(memoryview(b"".join(parts)).cast("i"))


def texts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(50_000) for _ in range(length)] for _ in range(count)]


def test_a_document_is_found_in_another_order_whole() -> None:
    tree = PrefixTree()
    one, two, new = texts(3, 200)
    enter(tree, one + two)
    first, second = ContextIndex(tree).runs(ROOT, two + new + one, 0, 600, 64)
    assert (first.begin, first.end, first.source) == (0, 200, 200)
    assert (second.begin, second.end, second.source) == (400, 600, 0)
    assert len(second.entries) == 13  # the 13th page is the one that both share


def test_a_run_goes_on_through_a_partly_filled_last_page() -> None:
    tree = PrefixTree()
    (text,) = texts(1, 107)
    enter(tree, text)
    (run,) = ContextIndex(tree).runs(ROOT, [7, *text], 1, 108, 64)
    assert (run.begin, run.end, len(run.entries)) == (1, 108, 7)


def test_a_run_that_is_too_short_is_not_worth_it() -> None:
    tree = PrefixTree()
    (text,) = texts(1, 160)
    enter(tree, text)
    index = ContextIndex(tree)
    changed = [*text[:60], 1, *text[61:100], 2, *text[101:]]
    assert index.runs(ROOT, [9, *changed], 0, 161, 64) == []
    assert [run.length for run in index.runs(ROOT, [9, *changed], 0, 161, 59)] == [60, 59]


@pytest.mark.parametrize("other", [PrefixRoot("model", salt="b"), PrefixRoot("model", lora="l"), PrefixRoot("other")])
def test_another_root_finds_nothing(other: PrefixRoot) -> None:
    tree = PrefixTree()
    (text,) = texts(1, 320)
    enter(tree, text)
    index = ContextIndex(tree)
    assert index.runs(ROOT, [7, *text], 0, 321, 64)
    assert index.runs(other, [7, *text], 0, 321, 64) == []


def test_tenants_do_not_crowd_each_other_out() -> None:
    tree = PrefixTree()
    (text,) = texts(1, 160)
    enter(tree, text)
    index = ContextIndex(tree)
    for tenant in range(2 * CANDIDATES):
        enter(tree, text, PrefixRoot("model", salt=str(tenant)))
        assert len(index.runs(ROOT, [7, *text], 0, 161, 64)) == 1


def test_what_has_been_evicted_is_not_found() -> None:
    tree = PrefixTree()
    (text,) = texts(1, 320)
    entries = enter(tree, text)
    index = ContextIndex(tree)
    assert index.runs(ROOT, [7, *text], 0, 321, 64)[0].length == 320
    for entry in reversed(entries[10:]):
        tree.remove(entry)
    assert index.runs(ROOT, [7, *text], 0, 321, 64)[0].length == 160
    tree.clear()
    assert index.runs(ROOT, [7, *text], 0, 321, 64) == []


def test_the_index_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much comes and goes."""
    monkeypatch.setattr(context_index, "SLACK", 64)
    tree = PrefixTree()
    index = ContextIndex(tree)
    for seed in range(60):
        (text,) = texts(1, 320, seed)
        for entry in reversed(enter(tree, text)):
            index.runs(ROOT, text, 0, 320, 64)
            tree.remove(entry)
        assert len(index) <= 64 + PAGE_SIZE * 20
    (same,) = texts(1, 16)
    enter(tree, same * 40)
    index.runs(ROOT, same, 0, 16, 16)
    assert len(index) <= CANDIDATES * PAGE_SIZE + 64 + PAGE_SIZE * 20


def test_other_tokens_under_the_same_hash_are_another_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = PrefixTree()
    index = ContextIndex(tree)
    monkeypatch.setattr(ContextIndex, "_hashes", lambda self, windows: windows[..., 0].astype("uint64") * 0)
    one, two = texts(2, 96)
    enter(tree, one)
    assert index.runs(ROOT, two, 0, 96, 64) == []
    assert index.runs(ROOT, [7, *one], 0, 97, 64)


def test_texts_that_nearly_agree_cost_a_bounded_number_of_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every window of 16 tokens is known, and none of them goes on as the prompt does."""
    tree = PrefixTree()
    windows = texts(200, 16)
    for at, window in enumerate(windows):
        for variant in range(4):
            enter(tree, [60_000 + 4 * at + variant, *[1] * 15, *window, *[2] * 16])
    looks = []
    look = context_index._Search.run
    monkeypatch.setattr(context_index._Search, "run", lambda *asked: looks.append(1) or look(*asked))
    prompt = [token for window in windows * 8 for token in window]
    assert ContextIndex(tree).runs(ROOT, prompt, 0, len(prompt), 64) == []
    assert 0 < len(looks) < context_index.COMPARED + CANDIDATES


@st.composite
def pieces(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Parts of three texts: (which, from, length)."""
    return draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 150), st.integers(1, 150)), min_size=1, max_size=6)
    )


@settings(max_examples=100, deadline=None)
@given(
    donors=st.lists(pieces(), min_size=1, max_size=4), prompt=pieces(), vocabulary=st.sampled_from([1, 2, 3, 50_000]),
    begin=st.integers(0, 40), gone=st.integers(0, 12), least=st.sampled_from([16, 32, 64]),
)  # fmt: skip
def test_runs_are_true_maximal_and_in_order(donors, prompt, vocabulary, begin, gone, least) -> None:
    """For any donors, also of few different tokens, and with entries gone."""
    draw = random.Random(5)
    sources = [[draw.randrange(vocabulary) for _ in range(300)] for _ in range(3)]
    tree = PrefixTree()
    for donor in donors:
        enter(tree, [token for which, at, length in donor for token in sources[which][at : at + length]])
    index = ContextIndex(tree)
    tokens = [token for which, at, length in prompt for token in sources[which][at : at + length]]
    index.runs(ROOT, tokens, 0, len(tokens), least)
    for _ in range(gone):
        leaves = [entry for entry in tree if not entry.children]
        if leaves:
            tree.remove(draw.choice(leaves))
    before = begin
    for run in index.runs(ROOT, tokens, begin, len(tokens), least):
        assert before <= run.begin < run.end <= len(tokens) and run.length >= least
        assert all(entry in tree for entry in run.entries)
        donor = donor_tokens(run.entries[-1])
        assert donor[run.source : run.source + run.length] == tokens[run.begin : run.end]
        assert run.entries[0].depth == run.source // PAGE_SIZE + 1
        assert run.entries[-1].depth == (run.source + run.length - 1) // PAGE_SIZE + 1
        assert all(entry.parent is parent for parent, entry in zip(run.entries, run.entries[1:], strict=False))
        if run.begin > before and run.source:
            assert donor[run.source - 1] != tokens[run.begin - 1], "it could have begun earlier"
        before = run.end


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(0, 200), length=st.integers(120, 250), noise=st.integers(0, 90))
def test_a_long_common_run_is_always_found(cut: int, length: int, noise: int) -> None:
    """A window in four is an anchor: 105 windows are without one once in 10^13 times."""
    tree = PrefixTree()
    known, other = texts(2, 450)
    enter(tree, known)
    prompt = other[:noise] + known[cut : cut + length] + other[noise:]
    runs = ContextIndex(tree).runs(ROOT, prompt, 0, len(prompt), 64)
    assert [(run.begin, run.end, run.source) for run in runs] == [(noise, noise + length, cut)]
