"""Which tokens lie in which cached page: a tree with a page of tokens in every node.

Owns: the nodes, their keys and their exact tokens. Must not know: references, eviction, sequences.

    root (model, format, salt) --- [16 tokens] --- [16 tokens] --- [7 tokens]
                                              \\--- [16 tokens]
    depth 0                        1               2               3

Only a full page has children. No child of a node begins with all the tokens of another: a longer one replaces it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise

from sixfold.engine.prefix_key import TOKEN_BYTES, PrefixRoot, chain
from sixfold.runtime.batch import PAGE_SIZE

PAGE_BYTES = PAGE_SIZE * TOKEN_BYTES  # of a full page's tokens
NO_PAGE = -1


class Entry:
    """A page of tokens after all those of its parents; the root of a tree has no page."""

    __slots__ = (
        "children", "depth", "due", "epoch", "indexed", "key", "page", "parent", "root", "tokens", "used_at", "uses",
    )  # fmt: skip

    def __init__(self, key: bytes, parent: Entry | None, tokens: bytes, page: int, root: PrefixRoot, epoch: int):
        self.key = key
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1  # pages up to here
        self.tokens = tokens
        self.page = page
        self.root = root
        self.epoch = epoch  # how often the tree had been cleared
        self.children: list[Entry] = []  # in order of their tokens
        self.indexed = False  # the context index knows it; only that reads and writes this
        # What decides when it is evicted; only the eviction order reads and writes these.
        self.uses = 0
        self.used_at = 0
        self.due = 0.0


class PrefixTree:
    def __init__(self) -> None:
        self._roots: dict[PrefixRoot, Entry] = {}  # those with children
        self._entries: dict[bytes, Entry] = {}  # all but the roots
        self.epoch = 0
        self.empty_slots = 0  # in the pages of entries that are not full

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def newest(self) -> Iterator[Entry]:
        """All entries, the last to come first."""
        return reversed(self._entries.values())

    def clear(self) -> None:
        self._roots.clear()
        self._entries.clear()
        self.empty_slots = 0
        self.epoch += 1

    def root(self, root: PrefixRoot) -> Entry:
        """The beginning of every sequence of this root. It is kept only once something follows it."""
        found = self._roots.get(root)
        return found or Entry(root.key(), None, b"", NO_PAGE, root, self.epoch)

    def find(self, parent: Entry, tokens: bytes) -> Entry | None:
        """The entry of exactly these tokens after ``parent``: by key, and then token by token."""
        found = self._entries.get(chain(parent.key, tokens))
        return found if found is not None and self._same(found, parent, tokens) else None

    def follows(self, root: PrefixRoot, key: bytes) -> Entry | None:
        """The full page of this key (or the root itself), after which an entry may follow."""
        entry = self._entries.get(key)
        if entry is None:
            beginning = self.root(root)
            return beginning if beginning.key == key else None
        return entry if entry.root == root and len(entry.tokens) == PAGE_BYTES else None

    def __contains__(self, entry: Entry) -> bool:
        """Roots are always there."""
        return entry.parent is None or self._entries.get(entry.key) is entry

    def longest(self, parent: Entry, tokens: bytes) -> tuple[Entry, int] | None:
        """The child that has the most of ``tokens`` in common from their beginning, and how many tokens that is.

        Children are sorted, so it is a neighbour of the place where ``tokens`` would stand.
        """
        children = parent.children
        at = bisect_left(children, tokens, key=_tokens)
        best: tuple[Entry, int] | None = None
        for child in children[max(0, at - 1) : at + 1]:
            common = _common_tokens(child.tokens, tokens)
            if common > (0 if best is None else best[1]):
                best = child, common
        return best

    def extended(self, parent: Entry, tokens: bytes) -> bool:
        """Whether a child begins with ``tokens``, so that an entry of them would add nothing."""
        children = self._canonical(parent).children
        at = bisect_left(children, tokens, key=_tokens)
        return at < len(children) and children[at].tokens.startswith(tokens)

    def enter(self, parent: Entry, tokens: bytes, page: int) -> tuple[Entry | None, Entry | None]:
        """(the entry of these tokens after ``parent``, the shorter one that a new one replaces).

        The entry may be an older one, of another page. There is none if other tokens have its key.
        """
        key = chain(parent.key, tokens)
        found = self._entries.get(key)
        if found is not None:
            return (found if self._same(found, parent, tokens) else None), None
        parent = self._canonical(parent)
        at = bisect_left(parent.children, tokens, key=_tokens)
        before = parent.children[at - 1] if at else None
        entry = Entry(key, parent, tokens, page, parent.root, self.epoch)
        parent.children.insert(at, entry)
        self._entries[key] = entry
        self.empty_slots += _empty(entry)
        if parent.parent is None:
            self._roots[parent.root] = parent
        if before is None or not tokens.startswith(before.tokens):
            return entry, None
        self.remove(before)
        return entry, before

    def remove(self, entry: Entry) -> Entry:
        """Takes an entry without children out: its parent."""
        parent = entry.parent
        assert parent is not None and not entry.children
        del self._entries[entry.key]
        del parent.children[bisect_left(parent.children, entry.tokens, key=_tokens)]
        self.empty_slots -= _empty(entry)
        if parent.parent is None and not parent.children:
            del self._roots[parent.root]
        return parent

    def check_integrity(self) -> None:
        """Raises AssertionError unless children and parents agree and every key is that of its tokens."""
        for entry in self:
            parent = entry.parent
            if parent is None or entry not in parent.children or entry.depth != parent.depth + 1:
                raise AssertionError(f"the entry of page {entry.page} is no child of its parent")
            if parent.parent is None and self._roots.get(parent.root) is not parent:
                raise AssertionError(f"the root of page {entry.page} is unknown")
            if parent.parent is not None and (
                self._entries.get(parent.key) is not parent or len(parent.tokens) != PAGE_BYTES
            ):
                raise AssertionError(f"the entry of page {entry.page} follows one that is gone or not full")
            if self._entries.get(chain(parent.key, entry.tokens)) is not entry or entry.epoch != self.epoch:
                raise AssertionError(f"the entry of page {entry.page} has a wrong key or epoch")
        for parent in (*self, *self._roots.values()):
            tokens = [child.tokens for child in parent.children]
            for before, after in pairwise(tokens):
                if not before < after or after.startswith(before):
                    raise AssertionError("children are not in order, or one begins with another")
        if sum(len(parent.children) for parent in (*self, *self._roots.values())) != len(self):
            raise AssertionError("an entry is nobody's child")
        if self.empty_slots != sum(map(_empty, self)):
            raise AssertionError("the empty slots are counted wrong")

    def _same(self, found: Entry, parent: Entry, tokens: bytes) -> bool:
        return found.tokens == tokens and found.parent is self._canonical(parent)

    def _canonical(self, parent: Entry) -> Entry:
        """Of a root there may be several: one that was made while nothing followed it is not the one that is kept."""
        return self._roots.get(parent.root, parent) if parent.parent is None else parent


def _tokens(entry: Entry) -> bytes:
    return entry.tokens


def _empty(entry: Entry) -> int:
    return PAGE_SIZE - len(entry.tokens) // TOKEN_BYTES


def _common_tokens(one: bytes, other: bytes) -> int:
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length // TOKEN_BYTES
    return next(at for at in range(length) if one[at] != other[at]) // TOKEN_BYTES
