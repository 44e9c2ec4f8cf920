from __future__ import annotations

import json
from pathlib import Path

import pytest

from sixfold.bench import server_process
from sixfold.errors import ConfigError
from sixfold.runtime import limits, products
from sixfold.weights.model_file import ModelFile
from tests.cache.redis_server import needs_redis, redis_server


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates mean nothing then, and are measured in no time."""
    monkeypatch.setattr(limits, "RAM_BYTES", 1 << 20)
    monkeypatch.setattr(products, "BUFFER_BYTES", 1 << 14)
    monkeypatch.setattr(products, "RUN_MACS", 1e4)


def test_latency(sixfold_json, chat_model: str) -> None:
    shape = ("--prompt-tokens", "8,20", "--batch", "1,3", "--new-tokens", 4, "--repeats", 2)
    found = sixfold_json("bench", "latency", chat_model, *shape)
    assert [(r["prompt_tokens"], r["batch"]) for r in found["results"]] == [(8, 1), (8, 3), (20, 1), (20, 3)]
    assert all(value > 0 for result in found["results"] for value in result.values())
    assert found["machine"]["cores"] >= 1 and found["date"] and found["command"].startswith("sixfold")


def test_throughput_is_of_the_load_that_was_asked_for(sixfold_json, chat_model: str) -> None:
    shape = ("--requests", 5, "--prompt-tokens", "4,9", "--new-tokens", "2,6")
    one, two = (sixfold_json("bench", "throughput", chat_model, *shape)["results"] for _ in range(2))
    assert (one["prompt_tokens"], one["new_tokens"]) == (two["prompt_tokens"], two["new_tokens"])
    assert 20 <= one["prompt_tokens"] <= 45 and 10 <= one["new_tokens"] <= 30
    assert one["new_tokens_per_second"] == pytest.approx(one["new_tokens"] / one["seconds"])


def test_a_profile_names_every_operator_and_the_limits(sixfold_json, chat_model: str) -> None:
    shape = ("--prompt-tokens", "8", "--batch", "1,3", "--new-tokens", 4, "--repeats", 2)
    found = sixfold_json("bench", "latency", chat_model, "--profile", *shape)
    assert found["limits"]["threads"] == found["threads"] and found["limits"]["weights_bytes"] > 0
    profiles = {(one["phase"], one["batch"]): one for one in found["profiles"]}
    assert profiles["decode", 3]["steps"] == 6 and profiles["decode", 3]["rows_per_step"] == 3
    assert profiles["prefill", 1]["steps"] == 2 and profiles["prefill", 3]["rows_per_step"] == 24
    for one in profiles.values():
        names = {operator["operator"] for operator in one["operators"]}
        assert {"qkv_rope_kv", "attention", "gate_up_act", "matmul_add", "logits"} <= names
        inside = sum(operator["ms_per_step"] for operator in one["operators"])
        assert inside + one["between_operators_ms"] + one["outside_executor_ms"] == pytest.approx(one["ms_per_step"])
        assert one["outside_executor_ms"] > 0 and 0 < one["share_of_limit"] < 1


def test_the_profile_of_a_phase_that_never_runs_is_refused(sixfold, chat_model: str) -> None:
    result = sixfold("bench", "latency", chat_model, "--profile", "--prompt-tokens", 1, "--batch", 1)
    assert result.exit_code == 1 and "No prefill step" in result.output


def test_kernels(sixfold_json, chat_model: str, tmp_path: Path) -> None:
    file = tmp_path / "results" / "kernels.json"
    shape = ("--rows", "1,5", "--formats", "q4_1,F16", "--repeats", 1, "--threads", 2)
    found = sixfold_json("bench", "kernels", chat_model, *shape, "--output", file)
    assert json.loads(file.read_text()) == found
    assert [one["threads"] for one in found["limits"]] == [1, 2]
    assert {one["format"] for one in found["products"]} == {"int4/32 f16+min", "f16"}
    assert {(one["rows"], one["threads"]) for one in found["products"]} == {(1, 1), (5, 1), (1, 2), (5, 2)}
    assert {(one["outputs"], one["columns"]) for one in found["products"]} >= {(96, 64), (64, 96), (320, 64)}
    assert all(one["gmac_per_second"] > 0 and one["share_of_limit"] > 0 for one in found["products"])


def test_growth(sixfold_json, chat_model: str, base_model: str) -> None:
    shape = ("--batch", "1,2,4", "--context", "16,600", "--repeats", 2, "--kv-memory", "1M")
    found = sixfold_json("bench", "growth", chat_model, base_model, *shape)
    first, second = found["models"]
    assert [(step["batch"], step["context"]) for step in first["steps"]] == [(1, 16), (2, 16), (4, 16), (1, 600)]
    assert [(step["batch"], step["context"]) for step in second["steps"]] == [(1, 16)]
    assert all(found["fits"][name]["exponent"] is not None for name in ("batch", "context", "weights"))
    assert [one["context"] for one in first["attention"]] == [16, 600] and first["parameters"] > 0
    assert all(0 < one["attention_share"] < 1 for one in first["attention"])
    assert found["skipped"] == []
    small = sixfold_json("bench", "growth", chat_model, *shape[:-1], "30K")
    assert {"batch": 1, "context": 600} in small["skipped"], "a context beyond the KV memory is named"


def test_a_plot_needs_matplotlib_and_says_so_first(sixfold, chat_model: str, tmp_path: Path) -> None:
    command = ("bench", "growth", chat_model, "--batch", "1,2", "--context", "16,40", "--plot", tmp_path / "a/plot.svg")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        result = sixfold(*command)
        assert result.exit_code == 1 and "sixfold[bench]" in result.output
    else:
        assert sixfold(*command).exit_code == 0 and (tmp_path / "a/plot.svg").stat().st_size > 1000


def test_kv(sixfold, sixfold_json, chat_model: str, tmp_path: Path) -> None:
    shape = ("--requests", 40, "--history", 100, "--new-tokens", 8, "--repeats", 1, "--conversations", 3, "--turns", 2)
    found = sixfold_json("bench", "kv", chat_model, *shape)
    waste, prefix = found["waste"], found["prefix"]
    assert (waste["requests"], waste["trace"], waste["preemptions"] >= 0) == (40, "drawn", True)
    sizes = [one["tokens"] for one in waste["by_page_size"]]
    shares = [one["waste"] for one in waste["by_page_size"]]
    assert sizes == [16, 32, 128] and 0 < shares[0] < shares[1] < shares[2] < 1
    assert prefix["first_token"]["cached_tokens"] in range(100, 108) and prefix["first_token"]["ttft_ms"] > 0
    rate = prefix["conversations"]
    assert 0 < rate["hit_rate"] <= rate["best_hit_rate"] < 1 and rate["looked_up"] == 3 * (64 + 32 + 64 + 96)
    tier = found["tier"]
    assert tier["fetched_tokens"] == 96 and tier["ttft_ms"] > 0  # whole pages of 100 tokens
    exact, int8 = found["formats"]
    assert exact["share_of_f16"] == 1 and 0.5 < int8["share_of_f16"] < 0.7 and "perplexity" not in int8
    shown = sixfold("bench", "kv", chat_model, *shape).stdout
    assert "128 tokens" in shown and "history known" in shown and "history on disk" in shown and "int8" in shown


@needs_redis
def test_kv_from_redis(sixfold_json, chat_model: str, tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        shape = ("--section", "tier", "--history", 100, "--new-tokens", 8, "--repeats", 1, "--kv-redis", server.url)
        found = sixfold_json("bench", "kv", chat_model, *shape)
        assert found["tier"]["fetched_tokens"] == found["tier_redis"]["fetched_tokens"] == 96
        assert server.client().dbsize() == 0, "it is left as it was"


def test_kv_formats_are_scored_on_a_text(sixfold_json, chat_model: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The sea was calm. " * 40)
    options = ("--section", "formats", "--text", text, "--ctx", 64, "--windows", 2)
    exact, int8 = sixfold_json("bench", "kv", chat_model, *options)["formats"]
    assert exact["perplexity_change"] == 0 != int8["perplexity_change"] and abs(int8["perplexity_change"]) < 0.05
    assert (int8["ctx"], int8["windows"]) == (64, 2)


def test_kv_of_a_long_context(sixfold, sixfold_json, wide_model: str) -> None:
    shape = ("--section", "long", "--long-context", 2048, "--repeats", 1)
    found = sixfold_json("bench", "kv", wide_model, *shape)["long"]
    assert [step["context"] for step in found["steps"]] == [1024, 2048] and found["kv_format"] == "int4"
    assert found["recall"]["right"] == found["recall"]["asked"] == 16 and found["predicted_bytes"] > 0
    shown = sixfold("bench", "kv", wide_model, *shape, "--kv-format", "int8").stdout
    assert "in int8" in shown and "16 of 16" in shown


def test_kv_formats_of_wide_heads(sixfold_json, wide_model: str) -> None:
    command = ("bench", "kv", wide_model, "--section", "formats", "--kv-format", "int4,0=int8")
    _, int8, int4, mixed = sixfold_json(*command)["formats"]
    assert 0.25 < int4["share_of_f16"] < 0.33 < mixed["share_of_f16"] < int8["share_of_f16"]
    assert mixed["share_of_scales"] < int4["share_of_scales"]


def test_kv_reuses_context(sixfold, sixfold_json, chat_model: str) -> None:
    shape = ("--section", "reuse", "--chunks", 2, "--chunk-tokens", 64, "--prompts", 4, "--kv-memory", "4M")
    found = sixfold_json("bench", "kv", chat_model, *shape, "--shares", "0.3,0.6")["reuse"]
    assert [one["recompute"] for one in found["curve"]] == [0.3, 0.6]
    for one in found["curve"]:
        assert one["prompts"] == 4 and one["reused_tokens"] > 20 and one["kl_text"] >= 0 and one["ttft_ms"] > 0
    assert "computed again" in sixfold("bench", "kv", chat_model, *shape).stdout


def test_kv_replays_a_trace(sixfold, sixfold_json, chat_model: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:{46 + i}.680590{i},{374 + i},{44 + i}" for i in range(5)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    found = sixfold_json("bench", "kv", chat_model, "--section", "waste", "--trace", trace)["waste"]
    assert found["requests"] == 5 and found["trace"] == "trace.csv" and found["simulated_seconds"] > 4
    assert found["prompt_tokens"] + found["new_tokens"] <= 5 * 256, "scaled to the context"
    trace.write_text("a,b\n1,2\n")
    assert "is no trace" in sixfold("bench", "kv", chat_model, "--section", "waste", "--trace", trace).output


def test_serve_starts_a_server_loads_it_and_stops_it(sixfold_json, chat_model: str) -> None:
    shape = ("--prompt-tokens", "4,9", "--new-tokens", "2,6", "--token-ids", "1,200", "--requests", 6)
    found = sixfold_json("bench", "serve", chat_model, "--clients", 3, *shape, "--server-args", "--kv-memory 4M")
    assert (found["clients"], found["requests"], found["failures"], found["wrong_lengths"]) == (3, 6, 0, 0)
    assert found["results"][0]["ttft_ms"] == found["ttft_ms"] and set(found["ttft_ms"]) == {"p50", "p95", "p99"}
    assert 12 <= found["output_tokens"] <= 36 and found["output_tokens_per_second"] > 0


def test_serve_asks_a_server_that_runs(sixfold, sixfold_json, chat_model: str) -> None:
    with server_process.serving(chat_model, ["--kv-memory", "4M"]) as server:
        url = server.url
        shape = ("--new-tokens", 2, "--prompt-tokens", 8, "--requests", 3)
        loads = sixfold_json("bench", "serve", "--url", f"{url}/v1", "--clients", "1,2", "--text", *shape)
        assert [one["failures"] for one in loads["results"]] == [0, 0] and "clients" not in loads
        cold = ("--ttft-cold", "4,16", "--token-ids", "1,200", "--budget-ms", 60_000)
        found = sixfold_json("bench", "serve", "--url", url, *cold, *shape)
        assert [one["requests"] for one in found["cold"]] == [3, 3] and found["tokens_within_budget"] == 16
        shown = sixfold("bench", "serve", "--url", url, *cold, *shape).stdout
        assert "Within 60000 ms: 16 tokens." in shown
        assert "tokens/s" in sixfold("bench", "serve", "--url", url, "--clients", 2, "--text", *shape).stdout
        refused = sixfold("bench", "serve", "--url", url, "--token-ids", "5000,6000", *shape)
        assert refused.exit_code == 1 and "HTTP 400" in refused.output, "ids beyond the vocabulary"


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="memory is read from /proc")
def test_start_times_servers_and_weighs_them(sixfold, chat_model: str, tmp_path: Path) -> None:
    few = ("--starts", 1, "--first-starts", 1, "--prompt-tokens", 8, "--new-tokens", 2, "--token-ids", "1,200")
    file = tmp_path / "start.json"
    shown = sixfold("bench", "start", chat_model, *few, "--kv-memory", "4M", "--output", file).stdout
    assert "with a plan" in shown and "resident" in shown
    found = json.loads(file.read_text())
    assert [one["kind"] for one in found["starts"]] == ["with a plan", "first"]
    assert all(0 < one["ready_s"]["median"] < one["first_token_s"]["median"] for one in found["starts"])
    memory = found["memory"]
    assert len(memory["servers"]) == 2 and memory["plan_shared_share"] > 0.9
    for one in memory["servers"]:
        assert one["rss"] == one["plan"]["rss"] + one["kv"]["rss"] + one["rest"]["rss"]
        assert 0 < one["plan"]["pss"] < one["plan"]["rss"] and 0 < one["kv"]["rss"] <= 4 << 20


def test_serve_says_why_there_is_no_server(sixfold, tmp_path: Path) -> None:
    assert "names no model" in sixfold("bench", "serve", "--url", "http://127.0.0.1:1").output
    with pytest.raises(ConfigError, match="could not be served"), server_process.serving(str(tmp_path / "none.gguf")):
        pass


def test_tables(sixfold, chat_model: str) -> None:
    shape = ("--prompt-tokens", 8, "--new-tokens", 2)
    assert "first token ms" in sixfold("bench", "latency", chat_model, *shape, "--batch", 1, "--repeats", 1).stdout
    profile = sixfold("bench", "latency", chat_model, *shape, "--batch", 1, "--repeats", 1, "--profile").stdout
    assert "outside the executor" in profile and "Limits here and now" in profile
    assert "Fitted lines" in sixfold("bench", "growth", chat_model, "--batch", "1,2", "--context", "16").stdout
    assert "requests/s" in sixfold("bench", "throughput", chat_model, *shape, "--requests", 2).stdout


def test_decode_times_a_schema(sixfold, chat_model: str) -> None:
    shape = ("--prompt-tokens", 8, "--new-tokens", 24, "--batch", 2, "--repeats", 1)
    command = ("bench", "decode", chat_model, "--section", "structured", *shape)
    shown = sixfold(*command).stdout
    assert "JSON schema" in shown and "Jump-ahead saves" in shown
    found = json.loads(sixfold(*command, "--json").stdout)["structured"]
    assert found["steps"]["plain"] == found["steps"]["masked"] > found["steps"]["jumping"]
    assert found["steps_saved"] > 0 and found["mask_us"] > 0 and len(found["cost_by_round"]) == 1


@pytest.mark.model
def test_decode_drafts_what_is_quoted(sixfold, smollm2: ModelFile) -> None:
    shape = ("--section", "speculation", "--new-tokens", 48, "--batch", 1, "--repeats", 1, "--json")
    found = json.loads(sixfold("bench", "decode", smollm2.path, *shape).stdout)["speculation"]
    quoted, random = found["cases"]
    assert found["same_tokens"] and (quoted["text"], random["text"]) == ("quoted", "random")
    assert quoted["accepted_tokens"] > random["accepted_tokens"] and quoted["mean_accepted_length"] > 1


def test_decode_says_that_a_context_is_too_short(sixfold, chat_model: str) -> None:
    result = sixfold("bench", "decode", chat_model, "--section", "speculation")
    assert result.exit_code == 1 and "the context is 256 tokens" in result.output


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["latency", "--prompt-tokens", "300"], 1),
        (["latency", "--batch", "0"], 2),
        (["throughput", "--new-tokens", "9,2"], 2),
        (["kernels", "--formats", "Q9_9"], 2),
        (["kernels", "--output", "/dev/null/x"], 1),
        (["serve", "--prompt-tokens", "9,2"], 2),
        (["growth", "--kv-memory", "1"], 1),
        (["kv", "--section", "speed"], 2),
        (["decode", "--section", "speed"], 2),
        (["decode", "--prompt-tokens", "300"], 1),
        (["kv", "--section", "reuse", "--shares", "0.1,2"], 2),
        (["kv", "--section", "similar"], 1),
        (["kv", "--section", "prefix"], 1),
        (["kv", "--section", "waste", "--trace", "none.csv"], 1),
    ],
)
def test_mistakes(sixfold, chat_model: str, arguments: list[str], code: int) -> None:
    assert sixfold("bench", arguments[0], chat_model, *arguments[1:]).exit_code == code
