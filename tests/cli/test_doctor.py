from __future__ import annotations

from pathlib import Path

import pytest

from sixfold import store
from sixfold.cli import machine
from sixfold.cli.doctor import TYPICAL, judged
from sixfold.store import StoredModel


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SMALLEST_BUFFER", 1 << 20)
    monkeypatch.setattr(machine, "_l3", lambda: None)


def test_json(sixfold_json, home) -> None:
    found = sixfold_json("doctor")
    assert found["processor"]["cores"] >= 1 and found["processor"]["kernels"] in (
        "avx512bf16",
        "avx512",
        "avx2",
        "scalar",
    )
    assert all(one["bytes_per_second"] > 1e8 for one in found["bandwidth"]["measured"])
    assert found["store"] == {"home": str(home), "disk_free": pytest.approx(found["store"]["disk_free"])}
    assert {model["model"] for model in found["models"]} >= {"smollm2 (not pulled)", "7B at 4 bits"}


def test_text_calls_the_bound_a_bound(sixfold, monkeypatch: pytest.MonkeyPatch, chat_model: str) -> None:
    pulled = StoredModel("tiny", store.resolve(chat_model).path, "registry", "MIT", True, 1)
    damaged = StoredModel("damaged", Path(__file__), "registry", "MIT", True, 1)
    monkeypatch.setattr(store, "list_models", lambda: [pulled, damaged])
    text = sixfold("doctor").stdout
    assert "upper bound" in text and "GB/s" in text and "tiny" in text and "damaged" not in text


def test_what_fits_depends_on_memory_and_bandwidth() -> None:
    small, large = TYPICAL[0], TYPICAL[-1]
    assert judged(small, 1 << 30, 20e9)["fits"] and not judged(large, 1 << 30, 20e9)["fits"]
    assert judged(large, 1 << 40, 20e9)["tokens_per_second_upper_bound"] == pytest.approx(4.2, abs=0.1)


def test_processor_of_an_arm_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    info = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n"
    monkeypatch.setattr(machine, "_read", lambda path: info)
    assert machine.processor().features == ("NEON", "dotprod")
