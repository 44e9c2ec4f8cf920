"""The Prometheus metrics: vLLM's names, right sums, readable by Prometheus' own parser."""

from __future__ import annotations

import dataclasses

from prometheus_client.parser import text_string_to_metric_families

from sixfold.cache import TierCounts
from sixfold.metrics import Histogram, Metrics
from sixfold.types import FinishedStats, StepStats
from tests.server.fake_engine import FakeEngine

NAMES = [
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "gpu_cache_usage_perc",
    "prompt_tokens_total",
    "generation_tokens_total",
    "request_success_total",
    "time_to_first_token_seconds_bucket",
    "inter_token_latency_seconds_bucket",
    "time_per_output_token_seconds_bucket",
    "e2e_request_latency_seconds_bucket",
    "request_queue_time_seconds_bucket",
    "request_prefill_time_seconds_bucket",
    "request_decode_time_seconds_bucket",
    "request_inference_time_seconds_bucket",
    "request_prompt_tokens_bucket",
    "request_generation_tokens_bucket",
    "request_params_n_bucket",
    "request_params_max_tokens_bucket",
    "iteration_tokens_total_bucket",
    "num_preemptions_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "cache_config_info",
]


def samples(metrics: Metrics) -> dict[str, float]:
    """Values by name, and by ``name{label}`` of the last label that is not of the engine."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.expose()[0].decode()):
        for sample in family.samples:
            extra = {k: v for k, v in sample.labels.items() if k not in ("model_name", "engine")}
            found["/".join([sample.name, *extra.values()])] = sample.value
            if sample.name.startswith("vllm:"):
                assert (sample.labels["model_name"], sample.labels["engine"]) == ("m", "0")
    return found


def finished(**changes: object) -> FinishedStats:
    values: dict[str, object] = {
        "request_id": "r", "index": 0, "finish_reason": "stop", "prompt_tokens": 100, "generation_tokens": 5,
        "cached_tokens": 64, "n": 2, "max_tokens": 16, "arrival": 10.0, "first_scheduled": 10.5, "first_token": 11.0,
        "finished": 13.0,
    }  # fmt: skip
    return FinishedStats(**{**values, **changes})  # type: ignore[arg-type]


def test_all_names_are_there() -> None:
    metrics = Metrics("m")
    metrics.attach(FakeEngine().stats)
    text = metrics.expose()[0].decode()
    assert [name for name in NAMES if f"\nvllm:{name}{{" not in text] == []
    assert "process_resident_memory_bytes" in text
    openmetrics, content_type = metrics.expose("application/openmetrics-text; version=1.0.0")
    assert openmetrics.endswith(b"# EOF\n") and content_type.startswith("application/openmetrics-text")


def test_a_step_and_its_requests_are_counted() -> None:
    metrics = Metrics("m")
    metrics.attach(FakeEngine().stats)
    step = StepStats(
        duration=0.1,
            running=2,
            waiting=0,
            kv_usage=0.5,
            tokens=102,
            prompt_tokens=100,
            generation_tokens=3,
            preemptions=0,
            first_token_latencies=(0.004,),
            inter_token_latencies=(0.02, 3.0),
    )  # fmt: skip
    metrics.on_step(step)
    metrics.on_request_finished(finished())
    metrics.on_request_finished(finished(index=1, finish_reason="length"))
    metrics.on_request_finished(finished(finish_reason="abort", first_scheduled=None, first_token=None))
    found = samples(metrics)
    assert found["vllm:prompt_tokens_total"] == 100 and found["vllm:generation_tokens_total"] == 3
    assert found["vllm:time_to_first_token_seconds_bucket/0.001"] == 0
    assert found["vllm:time_to_first_token_seconds_bucket/0.005"] == 1
    assert found["vllm:inter_token_latency_seconds_bucket/0.025"] == 1
    assert found["vllm:inter_token_latency_seconds_count"] == 2
    assert found["vllm:inter_token_latency_seconds_sum"] == 3.02
    assert found["vllm:request_success_total/stop"] == 1 and found["vllm:request_success_total/length"] == 1
    assert found["vllm:request_success_total/abort"] == 1 and found["vllm:request_success_total/error"] == 0
    assert found["vllm:request_queue_time_seconds_sum"] == 1.0  # of the two that were scheduled
    assert found["vllm:request_decode_time_seconds_sum"] == 4.0
    assert found["vllm:request_time_per_output_token_seconds_sum"] == 1.0
    assert found["vllm:request_params_n_count"] == 2  # once a request, not once a choice
    assert found["vllm:prefix_cache_queries_total"] == 200 and found["vllm:prefix_cache_hits_total"] == 128
    assert found["vllm:kv_cache_usage_perc"] == 0.25 and found["vllm:num_preemptions_total"] == 4


def test_where_the_kv_memory_is() -> None:
    metrics = Metrics("m")
    metrics.attach(FakeEngine().stats)
    found = samples(metrics)
    pages = {name: found[f"sixfold:kv_pages_{name}"] for name in ("used", "cached", "free", "shared")}
    assert pages == {"used": 25, "cached": 40, "free": 35, "shared": 2}
    assert found["sixfold:kv_empty_slots"] == 3 and found["sixfold:kv_cache_waste_ratio"] == 0.015
    assert found["sixfold:kv_wasted_byte_seconds_total"] == 3 and found["sixfold:prefix_cache_evictions_total"] == 7
    assert found["sixfold:kv_allocated_byte_seconds_total"] == 200


def test_each_tier_has_its_numbers() -> None:
    tiers = {"disk": TierCounts(hits=3, entries=5, bytes=70), "redis": TierCounts(hits=4, failed=2)}
    metrics = Metrics("m")
    metrics.attach(lambda: dataclasses.replace(FakeEngine().stats(), tier=tiers, fetched_tokens=112))
    found = samples(metrics)
    assert (found["sixfold:kv_tier_hits_total/disk"], found["sixfold:kv_tier_hits_total/redis"]) == (3, 4)
    assert found["sixfold:kv_tier_failed_total/redis"] == 2 and found["sixfold:kv_tier_bytes/disk"] == 70
    assert found["sixfold:kv_tier_entries/disk"] == 5 and found["sixfold:kv_fetched_tokens_total"] == 112


def test_every_step_is_counted_however_many_are_kept_back() -> None:
    metrics = Metrics("m")
    for number in range(1, 101):
        metrics.on_step(
            StepStats(
                duration=0.1, running=3, waiting=0, kv_usage=0.5, tokens=3, prompt_tokens=0, generation_tokens=3,
                preemptions=0, first_token_latencies=(), inter_token_latencies=(0.02, 0.02, 3.0),
            )
        )  # fmt: skip
        if number in (1, 31, 32, 33, 100):
            found = samples(metrics)
            for name in ("inter_token_latency", "time_per_output_token"):
                assert found[f"vllm:{name}_seconds_bucket/0.025"] == 2 * number
                assert found[f"vllm:{name}_seconds_count"] == 3 * number
            assert found["vllm:generation_tokens_total"] == 3 * number
            assert found["vllm:iteration_tokens_total_count"] == number


def test_two_servers_do_not_share_numbers() -> None:
    one, other = Metrics("m"), Metrics("m")
    one.on_http_response("GET", "/health", 200)
    assert "http_requests_total//health/GET/2xx" not in samples(other)
    assert samples(one)["http_requests_total//health/GET/2xx"] == 1


def test_histogram_edges_are_inclusive() -> None:
    histogram = Histogram("h", "h", (1, 2))
    histogram.observe_all([1, 1.5, 2, 2.5])
    buckets = [s.value for s in histogram.family({"l": "x"}).samples if s.name == "h_bucket"]
    assert buckets == [1, 3, 4]
