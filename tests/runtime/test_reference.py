"""The reference executor against goldens that Hugging Face transformers made in float32 (tests/record_goldens.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sixfold.models import load_network
from sixfold.runtime.reference import ReferenceModel
from sixfold.weights.model_file import ModelFile, open_model
from tests.tiny_kinds import KINDS
from tests.tiny_models import digest, write_gguf, write_hf

GOLDENS = Path(__file__).parent.parent / "goldens"
TOLERANCE = 1e-3  # max |dlogit|


def prompts(golden: Any) -> Iterator[tuple[list[int], np.ndarray, dict[str, np.ndarray]]]:
    """(token ids, positions, the recorded arrays of this prompt)."""
    for index in range(len([name for name in golden if name.startswith("ids_")])):
        found = {name.removesuffix(f"_{index}"): golden[name] for name in golden if name.endswith(f"_{index}")}
        yield found["ids"].tolist(), found["positions"], found


CASES = [(kind, "hf") for kind in sorted(KINDS)] + [(k, "gguf") for k in sorted(KINDS) if KINDS[k].gguf_architecture]


@pytest.mark.parametrize("kind, layout", CASES)
def test_every_architecture_gives_the_logits_of_transformers(kind: str, layout: str, tmp_path: Path) -> None:
    golden = np.load(GOLDENS / f"{kind}.npz")
    assert str(golden["digest"]) == digest(kind), "the tiny model changed: record the goldens again"
    path = write_hf(kind, tmp_path / kind) if layout == "hf" else write_gguf(kind, tmp_path / f"{kind}.gguf")
    with open_model(path) as model:
        reference = ReferenceModel(load_network(model))
        for ids, positions, recorded in prompts(golden):
            difference = np.abs(reference.logits(ids)[positions] - recorded["logits"])
            assert difference.max() <= TOLERANCE


def check_real_model(model: ModelFile, name: str) -> None:
    golden = np.load(GOLDENS / f"{name}.npz")
    assert str(golden["digest"]) == model.digest
    reference = ReferenceModel(load_network(model))
    for ids, positions, recorded in prompts(golden):
        logits = reference.logits(ids)[positions]
        assert np.abs(logits[:, golden["sample_ids"]] - recorded["sample_logits"]).max() <= TOLERANCE
        top = np.take_along_axis(logits, recorded["top_ids"].astype(np.int64), axis=1)
        assert np.abs(top - recorded["top_logits"]).max() <= TOLERANCE
        assert (logits.argmax(axis=1) == recorded["top_ids"][:, 0]).all()


@pytest.mark.model
def test_smollm2_gives_the_logits_of_transformers(smollm2: ModelFile) -> None:
    check_real_model(smollm2, "smollm2")


@pytest.mark.model
def test_gemma3_gives_the_logits_of_transformers(gemma3_path: Path) -> None:
    with open_model(gemma3_path) as model:
        check_real_model(model, "gemma3-270m")
