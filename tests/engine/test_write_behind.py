from __future__ import annotations

from sixfold.engine.prefix_key import PrefixRoot, pack
from sixfold.engine.prefix_tree import Entry, PrefixTree
from sixfold.engine.write_behind import AT_ONCE, SHARE, WriteBehind


def chain(length: int, first: int = 0) -> list[Entry]:
    tree = PrefixTree()
    entry, entries = tree.root(PrefixRoot()), []
    for page in range(length):
        found, _ = tree.enter(entry, pack([first + page] * 16), page)
        assert found is not None
        entry = found
        entries.append(entry)
    return entries


def nothing(entry: Entry) -> bool:
    return False


def everything(entry: Entry) -> bool:
    return True


def taken(behind: WriteBehind, now: float = 0.0, seconds: float | None = 0.001, resting: bool = True, fit=everything):
    return list(behind.due(now, seconds, resting=resting, fit=fit))


def test_pages_go_in_order_and_what_is_stored_is_left_out() -> None:
    behind, entries = WriteBehind(100), chain(6)
    behind.ended(entries[5], lambda entry: entry is entries[1])
    assert taken(behind) == entries[2:] and not len(behind)


def test_a_page_of_several_sequences_goes_once() -> None:
    behind, entries = WriteBehind(100), chain(6)
    behind.ended(entries[3], nothing)
    behind.ended(entries[5], nothing)
    assert taken(behind) == entries


def test_what_is_gone_is_passed_over() -> None:
    behind, entries = WriteBehind(100), chain(6)
    behind.ended(entries[5], nothing)
    assert taken(behind, fit=lambda entry: entry in entries[3:]) == entries[3:]


def test_while_others_run_it_takes_its_share_of_the_time() -> None:
    behind, entries = WriteBehind(100), chain(60)
    behind.ended(entries[-1], nothing)
    seconds, now, went = 0.004, 0.0, 0
    while now < 10.0:
        went += len(taken(behind, now, seconds, resting=False))
        now += 0.01
    assert 0.9 * SHARE < went * seconds / now <= 1.1 * SHARE
    assert len(taken(behind, now)) == min(AT_ONCE, 60 - went), "and more at once when nothing runs"


def test_no_more_is_remembered_than_there_are_pages() -> None:
    behind, entries = WriteBehind(10), chain(30)
    behind.ended(entries[-1], nothing)
    assert len(behind) == 10 and taken(behind) == entries[-10:]


def test_a_sequence_that_entered_nothing() -> None:
    behind = WriteBehind(10)
    behind.ended(None, nothing)
    behind.ended(PrefixTree().root(PrefixRoot()), nothing)
    assert not len(behind)
