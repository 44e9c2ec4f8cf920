"""Prometheus metrics under the names that vLLM's dashboards read.

Owns: the numbers and how they are exposed. Must not know: HTTP, or the engine beyond the few fields read here.
The engine thread calls ``on_step`` and ``on_request_finished``; the numbers are plain Python behind one lock, because
an observation must cost well under a microsecond when dozens of sequences advance in every step.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

_TIER_COUNTERS = {
    "hits": "Pages read out",
    "misses": "Reads without an answer",
    "rejected": "Entries that were damaged, torn or foreign",
    "stored": "Pages written",
    "failed": "Reads and writes that failed",
    "evicted": "Pages given up",
}
_TIER_GAUGES = {"entries": "Pages", "bytes": "Bytes"}


class TierView(Protocol):
    """What is read of ``TierCounts``, beside the fields of ``_TIER_COUNTERS``."""

    entries: int
    bytes: int


class AdaptersView(Protocol):
    """What is read of ``AdapterCounts``."""

    @property
    def known(self) -> int: ...
    @property
    def resident(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def loads(self) -> int: ...
    @property
    def evictions(self) -> int: ...
    @property
    def running(self) -> tuple[str, ...]: ...
    @property
    def waiting(self) -> tuple[str, ...]: ...


class EngineStatsView(Protocol):
    """What is read of ``AsyncEngine.stats()`` on every scrape."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def kv_pages_total(self) -> int: ...
    @property
    def kv_pages_used(self) -> int: ...
    @property
    def kv_pages_cached(self) -> int: ...
    @property
    def kv_pages_free(self) -> int: ...
    @property
    def kv_pages_shared(self) -> int: ...
    @property
    def kv_empty_slots(self) -> int: ...
    @property
    def kv_waste(self) -> float: ...
    @property
    def kv_wasted_byte_seconds(self) -> float: ...
    @property
    def kv_allocated_byte_seconds(self) -> float: ...
    @property
    def prefix_queries(self) -> int: ...
    @property
    def prefix_hits(self) -> int: ...
    @property
    def prefix_evictions(self) -> int: ...
    @property
    def fetched_tokens(self) -> int: ...
    @property
    def foreseen_tokens(self) -> int: ...
    @property
    def reused_tokens(self) -> int: ...
    @property
    def recomputed_tokens(self) -> int: ...
    @property
    def speculates(self) -> bool: ...
    @property
    def drafts(self) -> int: ...
    @property
    def drafted_tokens(self) -> int: ...
    @property
    def accepted_tokens(self) -> int: ...
    @property
    def tier(self) -> Mapping[str, TierView] | None: ...
    @property
    def lora(self) -> AdaptersView: ...
    @property
    def kv_usage(self) -> float: ...
    @property
    def preemptions(self) -> int: ...


class StepView(Protocol):
    """What is read of ``types.StepStats``."""

    @property
    def tokens(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def generation_tokens(self) -> int: ...
    @property
    def first_token_latencies(self) -> tuple[float, ...]: ...
    @property
    def inter_token_latencies(self) -> tuple[float, ...]: ...


class FinishedView(Protocol):
    """What is read of ``types.FinishedStats``."""

    @property
    def index(self) -> int: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def generation_tokens(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def arrival(self) -> float: ...
    @property
    def first_scheduled(self) -> float | None: ...
    @property
    def first_token(self) -> float | None: ...
    @property
    def finished(self) -> float: ...


# The bucket edges that vLLM uses, so that recorded quantiles stay comparable.
_FIRST_TOKEN = (
    .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
_INTER_TOKEN = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)  # fmt: skip
_REQUEST = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)  # fmt: skip
_ITERATION = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_CHOICES = (1, 2, 5, 10, 20)
_STEPS_KEPT = 32
_FINISH_REASONS = ("stop", "length", "abort", "error")


def _one_two_five(largest: int) -> tuple[int, ...]:
    edges = [mantissa * 10**exponent for exponent in range(9) for mantissa in (1, 2, 5)]
    return tuple(edge for edge in edges if edge <= largest)


class Histogram:
    """Counts per bucket; not locked, its owner is."""

    def __init__(self, name: str, documentation: str, edges: Sequence[float]) -> None:
        self.name = name
        self.documentation = documentation
        self._edges = edges
        self._counts = [0] * (len(edges) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._edges, value)] += 1
        self._sum += value

    def observe_all(self, values: Iterable[float]) -> None:
        for value, equal in groupby(values):  # all that run wait equally long for their next token
            count = sum(1 for _ in equal)
            self._counts[bisect_left(self._edges, value)] += count
            self._sum += value * count

    def family(self, labels: dict[str, str], name: str | None = None) -> Metric:
        buckets: list[tuple[str, float]] = []
        total = 0
        for edge, count in zip((*map(float, self._edges), None), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if edge is None else str(edge), total))
        family = HistogramMetricFamily(name or self.name, self.documentation, labels=list(labels))
        family.add_metric(list(labels.values()), buckets, self._sum)
        return family


class Metrics(Collector):
    """One engine's metrics in a registry of their own, so that one process can hold many servers.

    It is the engine's step listener; :meth:`attach` gives it the engine's own counters once there is an engine.
    """

    def __init__(self, model_name: str, *, max_model_len: int = 1 << 20, page_size: int = 16) -> None:
        self._labels = {"model_name": model_name, "engine": "0"}
        self._page_size = page_size
        self._lock = threading.Lock()
        self._steps: deque[StepView] = deque()  # not added up yet
        self._stats: Callable[[], EngineStatsView] | None = None
        self._prompt_tokens = self._generation_tokens = 0
        self._finished: Counter[str] = Counter(dict.fromkeys(_FINISH_REASONS, 0))
        self._http: Counter[tuple[str, str, str]] = Counter()
        self._make_histograms(_one_two_five(max_model_len))
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _make_histograms(self, tokens: Sequence[float]) -> None:
        self._histograms: list[Histogram] = []

        def make(name: str, documentation: str, edges: Sequence[float]) -> Histogram:
            histogram = Histogram(f"vllm:{name}", documentation, edges)
            self._histograms.append(histogram)
            return histogram

        self._first_token = make("time_to_first_token_seconds", "Arrival to first token.", _FIRST_TOKEN)
        self._inter_token = make("inter_token_latency_seconds", "Time between two tokens.", _INTER_TOKEN)
        self._mean_token = make(
            "request_time_per_output_token_seconds", "A request's mean time between tokens.", _INTER_TOKEN
        )
        self._e2e = make("e2e_request_latency_seconds", "Arrival to end.", _REQUEST)
        self._queue = make("request_queue_time_seconds", "Arrival to first scheduled.", _REQUEST)
        self._prefill = make("request_prefill_time_seconds", "First scheduled to first token.", _REQUEST)
        self._decode = make("request_decode_time_seconds", "First token to end.", _REQUEST)
        self._inference = make("request_inference_time_seconds", "First scheduled to end.", _REQUEST)
        self._request_prompt = make("request_prompt_tokens", "Prompt tokens of a request.", tokens)
        self._request_generation = make("request_generation_tokens", "Generated tokens of a request.", tokens)
        self._params_n = make("request_params_n", "Choices asked for.", _CHOICES)
        self._params_max_tokens = make("request_params_max_tokens", "max_tokens asked for.", tokens)
        self._iteration = make("iteration_tokens_total", "Tokens run in one engine step.", _ITERATION)

    def attach(self, stats: Callable[[], EngineStatsView]) -> None:
        self._stats = stats

    def on_step(self, stats: StepView) -> None:
        """Keeps the numbers; they are added up some steps at a time: a model's step leaves nothing in the caches."""
        self._steps.append(stats)
        if len(self._steps) >= _STEPS_KEPT:
            with self._lock:
                self._add_steps()

    def _add_steps(self) -> None:
        steps = self._steps
        while steps:
            stats = steps.popleft()
            self._prompt_tokens += stats.prompt_tokens
            self._generation_tokens += stats.generation_tokens
            self._iteration.observe(stats.tokens)
            self._first_token.observe_all(stats.first_token_latencies)
            self._inter_token.observe_all(stats.inter_token_latencies)

    def on_request_finished(self, stats: FinishedView) -> None:
        with self._lock:
            self._finished[stats.finish_reason] += 1
            self._e2e.observe(stats.finished - stats.arrival)
            self._request_generation.observe(stats.generation_tokens)
            if stats.index == 0:  # these belong to the request, not to each of its choices
                self._request_prompt.observe(stats.prompt_tokens)
                self._params_n.observe(stats.n)
                self._params_max_tokens.observe(stats.max_tokens)
            if stats.first_scheduled is None:
                return
            self._queue.observe(stats.first_scheduled - stats.arrival)
            self._inference.observe(stats.finished - stats.first_scheduled)
            if stats.first_token is None:
                return
            self._prefill.observe(stats.first_token - stats.first_scheduled)
            self._decode.observe(stats.finished - stats.first_token)
            if stats.generation_tokens > 1:
                self._mean_token.observe((stats.finished - stats.first_token) / (stats.generation_tokens - 1))

    def on_http_response(self, method: str, handler: str, status: int) -> None:
        """``handler`` is a route's template, never a client's path: labels must stay few."""
        with self._lock:
            self._http[method, handler, f"{status // 100}xx"] += 1

    def collect(self) -> Iterator[Metric]:
        with self._lock:  # held to copy the numbers, not while they are encoded: the engine thread would wait
            self._add_steps()
            families = [*self._counters(), *(histogram.family(self._labels) for histogram in self._histograms)]
            # The older name of the same measurement; both are on dashboards in use.
            families.append(self._inter_token.family(self._labels, "vllm:time_per_output_token_seconds"))
        yield from families
        if self._stats is not None:
            yield from self._engine(self._stats())

    def _counters(self) -> Iterator[Metric]:
        yield self._counter("vllm:prompt_tokens", "Prompt tokens computed.", self._prompt_tokens)
        yield self._counter("vllm:generation_tokens", "Tokens generated.", self._generation_tokens)
        finished = CounterMetricFamily(
            "vllm:request_success", "Finished choices.", labels=[*self._labels, "finished_reason"]
        )
        for reason, count in self._finished.items():
            finished.add_metric([*self._labels.values(), reason], count)
        yield finished
        http = CounterMetricFamily("http_requests", "HTTP responses.", labels=["method", "handler", "status"])
        for key, count in self._http.items():
            http.add_metric(key, count)
        yield http

    def _engine(self, stats: EngineStatsView) -> Iterator[Metric]:
        yield self._counter("vllm:num_preemptions", "Sequences preempted.", stats.preemptions)
        yield self._gauge("vllm:num_requests_running", "Sequences running.", stats.running)
        yield self._gauge("vllm:num_requests_waiting", "Sequences waiting.", stats.waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the KV pages in use, 0 to 1.", stats.kv_usage)
        yield self._gauge("vllm:gpu_cache_usage_perc", "Older name of vllm:kv_cache_usage_perc.", stats.kv_usage)
        yield self._counter("vllm:prefix_cache_queries", "Tokens looked up in the prefix cache.", stats.prefix_queries)
        yield self._counter("vllm:prefix_cache_hits", "Tokens found in the prefix cache.", stats.prefix_hits)
        yield from self._kv_memory(stats)
        yield from self._adapters(stats.lora)
        if stats.speculates:
            yield from self._speculation(stats)
        pages = str(stats.kv_pages_total)
        config = {"block_size": str(self._page_size), "num_gpu_blocks": pages, "num_cpu_blocks": pages}
        yield self._info("vllm:cache_config_info", "The KV cache.", config)

    def _adapters(self, lora: AdaptersView) -> Iterator[Metric]:
        names = {
            "max_lora": str(lora.slots), "running_lora_adapters": ",".join(lora.running),
            "waiting_lora_adapters": ",".join(lora.waiting),
        }  # fmt: skip
        yield self._info("vllm:lora_requests_info", "LoRA adapters of running and waiting requests.", names)
        yield self._gauge("sixfold:lora_adapters", "LoRA adapters that requests may name.", lora.known)
        yield self._gauge("sixfold:lora_resident", "LoRA adapters in memory.", lora.resident)
        yield self._gauge("sixfold:lora_resident_bytes", "Memory of those.", lora.bytes)
        yield self._counter("sixfold:lora_loads", "LoRA adapters brought into memory.", lora.loads)
        yield self._counter("sixfold:lora_evictions", "LoRA adapters pushed out by others.", lora.evictions)

    def _speculation(self, stats: EngineStatsView) -> Iterator[Metric]:
        yield self._counter("vllm:spec_decode_num_drafts", "Drafts run.", stats.drafts)
        yield self._counter("vllm:spec_decode_num_draft_tokens", "Tokens drafted.", stats.drafted_tokens)
        yield self._counter("vllm:spec_decode_num_accepted_tokens", "Those that came true.", stats.accepted_tokens)
        yield self._gauge(
            "sixfold:spec_decode_mean_accepted_length", "Drafted tokens that came true, a draft.",
            stats.accepted_tokens / max(stats.drafts, 1),
        )  # fmt: skip

    def _kv_memory(self, stats: EngineStatsView) -> Iterator[Metric]:
        yield self._gauge("sixfold:kv_pages_used", "KV pages of sequences.", stats.kv_pages_used)
        yield self._gauge("sixfold:kv_pages_cached", "KV pages of the prefix cache alone.", stats.kv_pages_cached)
        yield self._gauge("sixfold:kv_pages_free", "KV pages with nothing in them.", stats.kv_pages_free)
        yield self._gauge("sixfold:kv_pages_shared", "KV pages of several sequences.", stats.kv_pages_shared)
        yield self._gauge("sixfold:kv_empty_slots", "Allocated KV slots without a token.", stats.kv_empty_slots)
        yield self._gauge(
            "sixfold:kv_cache_waste_ratio", "Share of the allocated KV memory without a token, over time, 0 to 1.",
            stats.kv_waste,
        )  # fmt: skip
        # Their rates give the share over any time: rate(wasted) / rate(allocated).
        yield self._counter(
            "sixfold:kv_wasted_byte_seconds", "KV memory without a token.", stats.kv_wasted_byte_seconds
        )  # fmt: skip
        yield self._counter(
            "sixfold:kv_allocated_byte_seconds", "KV memory allocated.", stats.kv_allocated_byte_seconds
        )  # fmt: skip
        yield self._counter(
            "sixfold:prefix_cache_evictions", "KV pages the prefix cache gave up.", stats.prefix_evictions
        )  # fmt: skip
        yield self._counter(
            "sixfold:kv_reused_tokens", "Tokens whose KV came from elsewhere in other prompts.", stats.reused_tokens
        )
        yield self._counter(
            "sixfold:kv_recomputed_tokens", "Tokens found there that were computed all the same.",
            stats.recomputed_tokens,
        )  # fmt: skip
        if stats.tier is not None:
            yield self._counter(
                "sixfold:kv_fetched_tokens", "Tokens whose KV came from the tier.", stats.fetched_tokens
            )
            yield self._counter("sixfold:kv_foreseen_tokens", "Those before a request asked.", stats.foreseen_tokens)
            yield from self._tier(stats.tier)

    def _tier(self, tiers: Mapping[str, TierView]) -> Iterator[Metric]:
        """One series a place, the nearest first: sum over ``tier`` what all have done."""
        for name, words in _TIER_COUNTERS.items():
            yield self._each(
                CounterMetricFamily, f"sixfold:kv_tier_{name}", f"{words} of the tier behind KV memory.",
                {place: getattr(counts, name) for place, counts in tiers.items()},
            )  # fmt: skip
        for name, words in _TIER_GAUGES.items():
            yield self._each(
                GaugeMetricFamily, f"sixfold:kv_tier_{name}", f"{words} in the tier behind KV memory.",
                {place: getattr(counts, name) for place, counts in tiers.items()},
            )  # fmt: skip

    def _each(
        self, kind: type[CounterMetricFamily | GaugeMetricFamily], name: str, documentation: str, values: dict[str, int]
    ) -> Metric:
        family = kind(name, documentation, labels=[*self._labels, "tier"])
        for place, value in values.items():
            family.add_metric([*self._labels.values(), place], value)
        return family

    def _info(self, name: str, documentation: str, labels: Mapping[str, str]) -> Metric:
        family = GaugeMetricFamily(name, documentation, labels=[*self._labels, *labels])
        family.add_metric([*self._labels.values(), *labels.values()], 1)
        return family

    def _counter(self, name: str, documentation: str, value: float) -> Metric:
        family = CounterMetricFamily(name, documentation, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _gauge(self, name: str, documentation: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, documentation, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type, in the format that the ``Accept`` header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
