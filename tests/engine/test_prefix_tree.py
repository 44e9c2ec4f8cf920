from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sixfold.engine.prefix_key import PrefixRoot, pack
from sixfold.engine.prefix_tree import PrefixTree

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=16)


def common(one, other):
    return next((at for at, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))


@given(known=st.lists(TOKENS, max_size=30), asked=TOKENS)
def test_the_longest_common_beginning_of_all_children(known, asked):
    tree = PrefixTree()
    for page, tokens in enumerate(known):
        root = tree.root(PrefixRoot("m"))
        if not tree.extended(root, pack(tokens)):
            tree.enter(root, pack(tokens), page)
        tree.check_integrity()
    best = max((common(tokens, asked) for tokens in known), default=0)
    found = tree.longest(tree.root(PrefixRoot("m")), pack(asked))
    assert (0 if found is None else found[1]) == best
    if found is not None:
        assert found[0].tokens.startswith(pack(asked[:best]))


def test_entries_come_and_go():
    tree = PrefixTree()
    root = tree.root(PrefixRoot("m"))
    short, _ = tree.enter(root, pack([1, 2]), 0)
    full, replaced = tree.enter(root, pack(range(1, 17)), 1)
    assert replaced is short and len(tree) == 1 and tree.empty_slots == 0
    assert tree.enter(root, pack(range(1, 17)), 2) == (full, None) and full.page == 1
    leaf, _ = tree.enter(full, pack([5]), 3)
    assert (leaf.depth, tree.empty_slots) == (2, 15)
    assert tree.find(root, pack(range(1, 17))) is full and tree.find(root, pack([5])) is None
    tree.check_integrity()
    assert tree.remove(leaf) is full and tree.remove(full) is root and len(tree) == 0
    tree.check_integrity()


def test_a_root_made_before_its_tree_is_the_same_tree():
    tree = PrefixTree()
    one, other = tree.root(PrefixRoot("m")), tree.root(PrefixRoot("m"))
    entry, _ = tree.enter(one, pack(range(16)), 0)
    assert tree.find(other, pack(range(16))) is entry and tree.extended(other, pack([0, 1]))
    tree.enter(other, pack(range(16, 32)), 1)
    tree.check_integrity()
    assert tree.find(tree.root(PrefixRoot("n")), pack(range(16))) is None
