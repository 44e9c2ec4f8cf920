"""Settings: where they come from, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sixfold.config import EngineConfig, ServerConfig, byte_count, home, load
from sixfold.errors import ConfigError


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIXFOLD_HOME", str(tmp_path / "home"))
    for name in ("THREADS", "MAX_NUM_SEQS", "KV_MEMORY", "PLAN_CACHE", "PORT", "API_KEY", "MODEL"):
        monkeypatch.delenv(f"SIXFOLD_{name}", raising=False)
    return tmp_path


def test_flag_beats_environment_beats_file_beats_default(
    empty_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(EngineConfig, "engine", {}).max_num_seqs == 64
    (empty_directory / "sixfold.toml").write_text("[engine]\nmax_num_seqs = 1\nthreads = 7\n[server]\nport = 9\n")
    assert load(EngineConfig, "engine", {}).max_num_seqs == 1
    monkeypatch.setenv("SIXFOLD_MAX_NUM_SEQS", "2")
    assert load(EngineConfig, "engine", {"max_num_seqs": None}).max_num_seqs == 2
    chosen = load(EngineConfig, "engine", {"max_num_seqs": 3})
    assert (chosen.max_num_seqs, chosen.threads) == (3, 7)
    assert load(ServerConfig, "server", {}).port == 9


def test_the_file_in_the_home_is_read_when_there_is_none_here(empty_directory: Path) -> None:
    home().mkdir()
    (home() / "config.toml").write_text("[server]\nport = 10\n")
    assert load(ServerConfig, "server", {}).port == 10


@pytest.mark.parametrize("text, size", [("512M", 512 << 20), ("1.5G", 3 << 29), ("2GiB", 2 << 30), ("77", 77)])
def test_sizes_have_units(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert byte_count(text) == size
    monkeypatch.setenv("SIXFOLD_KV_MEMORY", text)
    assert load(EngineConfig, "engine", {}).kv_memory == size


@pytest.mark.parametrize(
    "file, said",
    [
        ("[engine]\nthread = 2\n", "thread"),
        ("[engine]\nthreads = 1.5\n", "threads=1.5"),
        ("[engine]\nthreads = true\n", "threads=True"),
        ("[engine]\nthreads = 0\n", "threads=0"),
        ('[engine]\nisa = "sse9"\n', "sse9"),
        ("engine = 3\n", "not a table"),
        ("[engine\n", "not valid TOML"),
    ],
)
def test_mistakes_in_the_file_are_named(file: str, said: str, empty_directory: Path) -> None:
    (empty_directory / "sixfold.toml").write_text(file)
    with pytest.raises(ConfigError, match=said):
        load(EngineConfig, "engine", {})


@pytest.mark.parametrize("name, value", [("THREADS", "two"), ("KV_MEMORY", "2X"), ("PLAN_CACHE", "perhaps")])
def test_mistakes_in_the_environment_are_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"SIXFOLD_{name}", value)
    with pytest.raises(ConfigError, match=f"SIXFOLD_{name}"):
        load(EngineConfig, "engine", {})


def test_reused_context_is_off_on_or_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, reuse in (("off", False), ("on", True), ("0.3", {"recompute": 0.3}), ("1", {"recompute": 1.0})):
        monkeypatch.setenv("SIXFOLD_REUSE_CONTEXT", text)
        assert load(EngineConfig, "engine", {}).reuse == reuse
    assert EngineConfig().reuse is False
    for wrong in ("often", "1.1", "-0.1", "nan", ""):
        with pytest.raises(ConfigError, match="reuse_context"):
            EngineConfig(reuse_context=wrong)
    with pytest.raises(ConfigError, match="prefix cache"):
        EngineConfig(reuse_context="on", prefix_cache=False)


def test_an_empty_key_and_a_wild_port_are_refused() -> None:
    with pytest.raises(ConfigError, match="api_key"):
        ServerConfig(api_key="")
    with pytest.raises(ConfigError, match="port"):
        ServerConfig(port=65536)


def test_adapters_by_name(empty_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_directory / "sixfold.toml").write_text('[engine.lora]\nfrench = "a/b"\n')
    assert load(EngineConfig, "engine", {}).lora == {"french": "a/b"}
    monkeypatch.setenv("SIXFOLD_LORA", "a=x,b=y=z")
    assert load(EngineConfig, "engine", {}).lora == {"a": "x", "b": "y=z"}
    assert load(EngineConfig, "engine", {"lora": {"c": "d"}}).lora == {"c": "d"}
    for text in ("a", "=x", "a=", "a=x,a=y"):
        monkeypatch.setenv("SIXFOLD_LORA", text)
        with pytest.raises(ConfigError, match="SIXFOLD_LORA"):
            load(EngineConfig, "engine", {})


def test_a_password_in_a_url_is_not_shown() -> None:
    assert "hunter2" not in repr(EngineConfig(kv_redis="redis://:hunter2@host"))
