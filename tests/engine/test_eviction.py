from __future__ import annotations

from sixfold.engine.eviction import EvictionOrder
from sixfold.engine.prefix_key import PrefixRoot, pack
from sixfold.engine.prefix_tree import PrefixTree


def entries(count):
    """A chain of entries."""
    tree = PrefixTree()
    at, made = tree.root(PrefixRoot("m")), []
    for page in range(count):
        at, _ = tree.enter(at, pack([page] * 16), page)
        made.append(at)
    return made


def everything(order, known):
    left = set(known)
    popped = []
    while left:
        popped.append(order.pop(lambda entry: entry in left))
        left.discard(popped[-1])
    return popped


def test_least_recently_used_first_and_of_equals_the_deeper():
    order, known = EvictionOrder(10), entries(4)
    for index in (2, 0, 1, 3):
        if index != 1:
            order.entered()
        order.let_go(known[index])
        order.push(known[index])
    assert everything(order, known) == [known[2], known[1], known[0], known[3]]


def test_a_doubling_of_uses_is_worth_half_a_turn():
    order, (often, once, later) = EvictionOrder(10), entries(3)
    order.used(often)
    for entry, pages in ((often, 0), (once, 4), (later, 2)):
        for _ in range(pages):
            order.entered()
        order.let_go(entry)
        order.push(entry)
    assert everything(order, [often, once, later]) == [once, often, later]


def test_what_was_put_again_stands_at_its_new_place():
    order, (one, other) = EvictionOrder(10), entries(2)
    for entry in (one, other, one):
        order.entered()
        order.let_go(entry)
        order.push(entry)
    assert order.missing([one, other]) == []
    assert everything(order, [one, other]) == [other, one]


def test_what_is_out_of_date_does_not_pile_up():
    order, known = EvictionOrder(10), entries(3)
    for _ in range(1000):
        for entry in known:
            order.entered()
            order.let_go(entry)
            order.push(entry)
            order.trim(len(known), lambda entry: True)
    assert len(order._heap) < 80
    assert everything(order, known) == known
