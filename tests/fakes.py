"""Stand-ins for the model and the tokenizer, made so that a mistake in the engine changes the tokens.

The fake model's logits are a hash of all tokens before and at a row, *read back through the KV pages* when the logits
are asked for. A wrong page, a lost copy on write, a stale page or a use after free gives other tokens.
"""

from __future__ import annotations

import numpy as np

from sixfold.engine.async_engine import AsyncEngine
from sixfold.engine.core import EngineCore
from sixfold.engine.prefix_key import PrefixRoot
from sixfold.runtime.batch import ANYWHERE, PAGE_SIZE, Batch

VOCAB = 260  # 256 bytes, then special tokens
EOS = 256
LONGEST = 4096

_FACTORS = np.random.default_rng(6).integers(1, 2**63, LONGEST, dtype=np.uint64) | np.uint64(1)
_IDS = np.arange(VOCAB, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def fake_logits(token_ids) -> np.ndarray:
    """The model as a pure function: float32 [vocab] after these tokens. End of sequence comes now and then."""
    prefix = np.asarray(token_ids, dtype=np.uint64)
    state = np.uint64(np.sum((prefix + np.uint64(1)) * _FACTORS[: len(prefix)]))
    mixed = state + _IDS
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed >> np.uint64(40)).astype(np.float32) / np.float32(1 << 21)).astype(np.float32)


class FakeExecutor:
    """``forward`` stores token ids in pages; ``logits`` hashes what the block table leads to."""

    vocab_size = VOCAB
    page_bytes = 1 << 16
    resumption = ANYWHERE
    team = None
    approximations = ()
    placed = True  # what is read stands at its position; False: somebody makes up contexts

    def __init__(self, num_pages: int = 64, *, fail_when=None) -> None:
        self.num_pages = num_pages
        self.memory = np.full((num_pages, PAGE_SIZE), 1_000_003, dtype=np.uint64)  # no token
        self.positions = np.full((num_pages, PAGE_SIZE), -1, dtype=np.int64)  # that the slots' tokens stand at
        self.fail_when = fail_when  # called with the batch; true: raise
        self.batches: list[Batch] = []
        self.adapters: dict[int, object] = {}  # by slot
        self.largest_logits = 0
        self.moved = 0  # tokens

    def forward(self, batch: Batch) -> None:
        if self.fail_when is not None and self.fail_when(batch):
            raise RuntimeError("the machine is on fire")
        self.batches.append(batch)
        self._check(batch)
        first = 0
        for start, count, pages in _rows(batch):
            slots = np.arange(start, start + count)
            self.memory[pages[slots // PAGE_SIZE], slots % PAGE_SIZE] = batch.tokens[first : first + count]
            self.positions[pages[slots // PAGE_SIZE], slots % PAGE_SIZE] = slots
            first += count

    def logits(self, rows: np.ndarray) -> np.ndarray:
        self.largest_logits = max(self.largest_logits, len(rows))
        batch = self.batches[-1]
        ends = np.cumsum(batch.counts)
        tables = list(_rows(batch))
        result = np.empty((len(rows), VOCAB), dtype=np.float32)
        for i, row in enumerate(rows):
            at = int(np.searchsorted(ends, row, side="right"))
            start, count, pages = tables[at]
            length = start + int(row) - int(ends[at] - count) + 1
            stands = self.positions[pages].reshape(-1)[:length]
            assert not self.placed or (stands == np.arange(length)).all(), "KV of another position"
            result[i] = fake_logits(self.memory[pages].reshape(-1)[:length])
        return result

    def copy_pages(self, sources: np.ndarray, targets: np.ndarray) -> None:
        for source, target in zip(sources, targets, strict=True):
            self.memory[target] = self.memory[source]
            self.positions[target] = self.positions[source]

    def replace_page(self, old: int, page: int) -> None:
        assert (self.memory[old] == self.memory[page]).all(), "a page was replaced by one of other tokens"

    def move_tokens(self, moves: np.ndarray) -> None:
        """Of what a token's KV depends on the fake knows the token alone, so moved context is as good as computed."""
        for source, slot, target, target_slot, count, shift in moves.tolist():
            assert source != target and count >= 1 and max(slot, target_slot) + count <= PAGE_SIZE
            self.memory[target, target_slot : target_slot + count] = self.memory[source, slot : slot + count]
            moved = self.positions[source, slot : slot + count] + shift
            self.positions[target, target_slot : target_slot + count] = moved
            self.moved += count

    def set_adapter(self, slot: int, adapter) -> None:
        self.adapters[slot] = adapter

    def read_page(self, page: int) -> bytes:
        return (self.memory[page].tobytes() + self.positions[page].tobytes()).ljust(self.page_bytes, b"\0")

    def write_page(self, page: int, content: bytes) -> None:
        self.memory[page] = np.frombuffer(content, np.uint64)[:PAGE_SIZE]
        self.positions[page] = np.frombuffer(content, np.int64)[PAGE_SIZE : 2 * PAGE_SIZE]

    def _check(self, batch: Batch) -> None:
        assert batch.counts.min() >= 1
        assert batch.counts.sum() == len(batch.tokens)
        assert len(batch.page_offsets) == len(batch.starts) + 1
        writers: dict[int, bytes] = {}
        slots = set()
        for start, count, pages in _rows(batch):
            for position in range(start, start + count):
                page = int(pages[position // PAGE_SIZE])
                assert writers.setdefault(page, pages.tobytes()) == pages.tobytes(), "two sequences write the same page"
                slots.add((page, position % PAGE_SIZE))
        assert len(slots) == len(batch.tokens), "a slot is written twice"
        for array in (batch.tokens, batch.starts, batch.counts, batch.pages, batch.page_offsets):
            assert array.dtype == np.int32


def _rows(batch: Batch):
    for i, (start, count) in enumerate(zip(batch.starts.tolist(), batch.counts.tolist(), strict=True)):
        yield start, count, batch.pages[batch.page_offsets[i] : batch.page_offsets[i + 1]]


class FakeTokenizer:
    """One token a byte; 256 is end of sequence. ``poison`` is a token that cannot be decoded."""

    vocab_size = VOCAB
    bos_id = None
    eos_ids = frozenset({EOS})
    add_bos = False

    def __init__(self, poison: int | None = None) -> None:
        self.poison = poison

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        return list(text.encode())

    def encode_chat(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, ids, *, skip_special: bool = True, continuation: bool = False) -> str:
        stream = self.stream(skip_special=skip_special)
        return "".join([*map(stream.feed, ids), stream.flush()])

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b"<end>" if token_id == EOS else b""

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def is_special(self, token_id: int) -> bool:
        return token_id >= 256

    def stream(self, *, skip_special: bool = True, continuation: bool = False) -> FakeStream:
        return FakeStream(self, skip_special)


class FakeStream:
    """Latin letters come out at once, so that random bytes are text that tests can cut anywhere."""

    def __init__(self, tokenizer: FakeTokenizer, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special

    def feed(self, token_id: int) -> str:
        if token_id == self._tokenizer.poison:
            raise ValueError("poisoned token")
        if self._tokenizer.is_special(token_id) and self._skip:
            return ""
        return self._tokenizer.token_bytes(token_id).decode("latin-1")

    def flush(self) -> str:
        return ""


def make_core(
    num_pages: int = 64, *, executor=None, tokenizer=None, max_model_len: int = 1024, prefix_cache=True, **options
):
    return EngineCore(
        executor or FakeExecutor(num_pages), tokenizer or FakeTokenizer(), max_model_len=max_model_len,
        prefix_root=PrefixRoot("fake") if prefix_cache else None, **options,
    )  # fmt: skip


def make_async_engine(*, chat_template=None, model_name: str = "fake", max_queue: int = 1024, **core_options):
    core = make_core(**core_options)
    return AsyncEngine(
        core, core.tokenizer, chat_template=chat_template, model_name=model_name, max_queue=max_queue
    )  # fmt: skip
