from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from sixfold.compile.plan import build
from sixfold.engine.tokenizer import Tokenizer
from sixfold.errors import InvalidRequestError
from sixfold.evaluation.perplexity import NativeScorer, ReferenceScorer, perplexity, windows_of
from sixfold.models.network import load_network
from sixfold.runtime.native import NativeExecutor
from sixfold.runtime.reference import ReferenceModel
from sixfold.weights.model_file import ModelFile
from tests.fakes import FakeExecutor, FakeTokenizer, fake_logits


class WithBos(FakeTokenizer):
    bos_id = 257
    add_bos = True

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        assert not parse_special
        return [257] * add_special + super().encode(text)


def test_windows_follow_each_other_and_the_rest_is_left_out() -> None:
    windows = windows_of(FakeTokenizer(), "abcdefghijk\n", 4)
    assert [bytes(window.tolist()) for window in windows] == [b"abcd", b"efgh"]


def test_bos_replaces_the_first_token_of_every_window() -> None:
    windows = windows_of(WithBos(), "abcdefghijkl", 4)  # BOS abc | d->BOS efg | h->BOS ijk | l
    assert windows.tolist() == [[257, 97, 98, 99], [257, 101, 102, 103], [257, 105, 106, 107]]


@pytest.mark.parametrize("length", [0, 7])
def test_two_windows_are_the_least(length: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"has {length} tokens.*two windows take 8"):
        windows_of(FakeTokenizer(), "x" * length, 4)
    assert len(windows_of(FakeTokenizer(), "x" * 8, 4)) == 2


@pytest.mark.parametrize("chunk", [1, 7, 16, 512])
@pytest.mark.parametrize("context", [4, 33, 200])
def test_the_second_half_of_each_window_is_scored(context: int, chunk: int) -> None:
    window = np.random.default_rng(0).integers(0, 256, context).astype(np.int32)
    executor = FakeExecutor(-(-context // 16))
    scores = NativeScorer(executor, chunk)(window)
    expected = []
    for position in range(context // 2, context - 1):
        logits = fake_logits(window[: position + 1]).astype(np.float64)
        expected.append(logits[window[position + 1]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
    np.testing.assert_allclose(scores, expected, rtol=1e-7)
    assert executor.largest_logits <= 64


def test_perplexity_is_the_exponential_of_the_mean_loss() -> None:
    losses = iter([np.array([1.0, 2.0]), np.array([3.0, 6.0])])
    seen: list[tuple[int, float]] = []
    result = perplexity(np.zeros((2, 5), np.int32), lambda window: -next(losses), lambda *now: seen.append(now))
    assert result.perplexity == pytest.approx(math.exp(3)) and (result.tokens, result.windows, result.context) == (
        4,
        2,
        5,
    )
    assert result.error == pytest.approx(math.exp(3) * np.std([1, 2, 3, 6]) / math.sqrt(3))
    assert seen == [(1, pytest.approx(math.exp(1.5))), (2, pytest.approx(math.exp(3)))]


@pytest.mark.model
def test_smollm2_by_the_native_executor_is_near_the_reference(smollm2: ModelFile) -> None:
    """On so few tokens the rounding of activations to int8 is noise of under a percent; over 10,000 it is 0.3%."""
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    windows = windows_of(Tokenizer.from_model(smollm2), text, 128)[:2]
    executor = NativeExecutor(build(smollm2), num_pages=8, max_tokens=100)
    native = perplexity(windows, NativeScorer(executor, 100))
    reference = perplexity(windows, ReferenceScorer(ReferenceModel(load_network(smollm2))))
    assert native.tokens == 2 * 63
    assert native.perplexity == pytest.approx(reference.perplexity, rel=0.03)
