from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# --- sampling ---

class SamplingSettings:
    def __init__(
        self,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        typical_p: float,
        repetition_penalty: float,
        frequency_penalty: float,
        presence_penalty: float,
        logit_bias: Mapping[int, float],
        allowed: Sequence[int] = ...,
        bad_words: Sequence[Sequence[int]] = ...,
        no_repeat_ngram: int = 0,
        dry_multiplier: float = 0.0,
        dry_base: float = 1.75,
        dry_allowed_length: int = 2,
        dry_last_n: int = -1,
        dry_breaker_ids: Sequence[int] = ...,
        dry_breakers: Sequence[Sequence[int]] = ...,
    ) -> None: ...

def sample(
    logits: NDArray[np.float32],
    settings: list[SamplingSettings],
    keys: NDArray[np.uint64],
    tokens: list[Sequence[int] | None],
    suppressed: list[Iterable[int] | None],
    logprobs: list[int],
    executor: Executor | None = None,
    masks: NDArray[np.uint32] | None = None,
    mask_of: Sequence[int] = ...,
) -> list[tuple[int, float | None, int | None, tuple[tuple[int, float], ...]]]: ...
def argmax(logits: NDArray[np.float32], executor: Executor | None = None) -> list[int]: ...
def score(
    logits: NDArray[np.float32], targets: NDArray[np.int32], top: int
) -> list[tuple[int, float, int, tuple[tuple[int, float], ...]]]: ...
def logprobs_of(logits: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]: ...
def log_sum_exp(logits: NDArray[np.float32]) -> float: ...
def random_bits(seed: int, choice: int, position: int) -> int: ...
def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]: ...

# --- executor ---

class Adapter:
    bytes: int
    def __init__(
        self, values: int, data: NDArray[np.uint8], scales: NDArray[np.float32], records: NDArray[np.int64]
    ) -> None: ...

class Executor:
    logits_width: int
    num_pages: int
    page_bytes: int
    threads: int
    isa: str
    vocab_size: int
    def __init__(
        self,
        plan: NDArray[np.uint8],
        isa: str,
        threads: int,
        max_tokens: int,
        pages: int,
        kv_formats: Sequence[str],
        key_centres: NDArray[np.float32],
        max_sequences: int,
    ) -> None: ...
    def key_means(self, pages: NDArray[np.int32], tokens: int, out: NDArray[np.float32]) -> None: ...
    def forward(
        self,
        tokens: NDArray[np.int32],
        starts: NDArray[np.int32],
        counts: NDArray[np.int32],
        pages: NDArray[np.int32],
        page_offsets: NDArray[np.int32],
        adapters: NDArray[np.int32] | None = None,
    ) -> None: ...
    def set_adapter(self, slot: int, adapter: Adapter | None) -> None: ...
    def logits(self, rows: NDArray[np.int32], out: NDArray[np.float32]) -> None: ...
    def copy_pages(self, sources: NDArray[np.int32], targets: NDArray[np.int32]) -> None: ...
    def replace_page(self, old: int, page: int) -> None: ...
    def move_tokens(self, moves: NDArray[np.int32]) -> None: ...
    def read_page(self, page: int) -> bytes: ...
    def write_page(self, page: int, content: bytes) -> None: ...
    def profile(self, on: bool) -> None: ...
    def profiled(self) -> list[tuple[int, int, int, float]]: ...

# --- what bench measures against ---

def limit_read_bandwidth(bytes: int, threads: int, repeats: int) -> list[float]: ...
def limit_integer_macs(isa: str, threads: int) -> float: ...
def limit_float_macs(isa: str, threads: int) -> float: ...

class Product:
    tiles: int
    tile_bytes: int
    def __init__(self, record: NDArray[np.uint8], isa: str, rows: int, threads: int) -> None: ...
    def run(self, rows: int, tiles: int) -> float: ...

# --- single kernels, for tests ---

def kernel_matmul(
    isa: str,
    record: NDArray[np.uint8],
    tiles: NDArray[np.uint8],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
) -> None: ...
def kernel_add_tile(
    isa: str, values: int, tile: NDArray[np.uint8], t: NDArray[np.float32], out: NDArray[np.float32]
) -> None: ...
def kernel_unpack_row(
    record: NDArray[np.uint8], tiles: NDArray[np.uint8], row: int, out: NDArray[np.float32]
) -> None: ...
def kernel_rms_norm(
    isa: str, x: NDArray[np.float32], w: NDArray[np.float32], epsilon: float, y: NDArray[np.float32]
) -> None: ...
def kernel_gate(
    isa: str, activation: int, gate: NDArray[np.float32], up: NDArray[np.float32], y: NDArray[np.float32]
) -> None: ...
def kernel_rope(isa: str, x: NDArray[np.float32], cosine: NDArray[np.float32], sine: NDArray[np.float32]) -> None: ...
def kernel_rotate_head(isa: str, x: NDArray[np.float32]) -> None: ...
def kernel_attention(
    isa: str,
    kv_format: str,
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    tokens: int,
    position: int,
    window: int,
    out: NDArray[np.float32],
) -> None: ...
