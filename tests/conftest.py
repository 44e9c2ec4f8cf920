"""Fixtures shared by all tests: the real small model, fetched once through the store."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from sixfold.errors import SixfoldError
from sixfold.store import pull, resolve
from sixfold.weights.model_file import ModelFile, open_model

# A shell's background jobs ignore Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct Q4_1, pulled if this machine has never had it."""
    return pull("smollm2").path


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> ModelFile:
    return open_model(smollm2_path)


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M, only where the user has pulled it: its licence is not ours to accept."""
    try:
        return resolve("gemma3-270m").path
    except SixfoldError as error:
        pytest.skip(str(error))
