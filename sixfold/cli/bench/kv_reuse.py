"""The sections ``reuse`` and ``similar`` of ``sixfold bench kv``.

Owns: their settings and tables. Must not know: how anything is measured (``cli/elsewhere.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sixfold.cli import console
from sixfold.errors import InvalidRequestError

if TYPE_CHECKING:
    from sixfold.cli.elsewhere import Asker
    from sixfold.config import EngineConfig

ORDERS = 4  # of each set of chunks


@dataclass(frozen=True)
class Contexts:
    """What is asked. Shares are of the found tokens, computed again."""

    text: Path | None
    prompts: int
    pairs: int
    chunks: int
    chunk_tokens: int
    sentences: int
    shares: tuple[float, ...]
    alone: bool
    seed: int


def shares_of(text: str) -> tuple[float, ...]:
    """``0,0.15,0.5``. Raises ValueError."""
    shares = tuple(float(part) for part in text.split(","))
    if not all(0.0 <= share <= 1.0 for share in shares):
        raise ValueError(f"{text!r} is no list of shares; write 0,0.15,0.5")
    return shares


def measure_reuse(settings: EngineConfig, ask: Contexts) -> dict[str, Any]:
    from sixfold.bench.contexts import QUESTION, permuted
    from sixfold.cli.elsewhere import ANSWER, drawn_text, permuted_chunks
    from sixfold.cli.evaluate import read_text

    asker = _asker(settings)
    needed = (ask.chunks + 1) * ask.chunk_tokens + QUESTION + ANSWER
    if ask.text is None:
        tokens = drawn_text(asker, 20 * needed, ask.seed)
    else:
        tokens = asker.tokenizer.encode(read_text(ask.text), parse_special=False)
    sets = -(-ask.prompts // ORDERS)
    if len(tokens) < needed:
        raise InvalidRequestError(
            f"The text has {len(tokens)} tokens", cause=f"chunks are drawn from at least {needed}",
            remedy="Use a longer --text, or fewer or shorter chunks", param="text",
        )  # fmt: skip
    prompts = permuted(tokens, sets, ORDERS, ask.chunks, ask.chunk_tokens, ANSWER, ask.seed)
    with console.steps("Reused context", sets * ORDERS) as report:
        found = permuted_chunks(asker, prompts, ask.shares, ask.alone, report)
    shape = {"chunks": ask.chunks, "chunk_tokens": ask.chunk_tokens, "known_alone": ask.alone}
    return {"text": "made up" if ask.text is None else ask.text.name, **shape, **found}


def measure_similar(settings: EngineConfig, ask: Contexts) -> dict[str, Any]:
    from sixfold.bench.contexts import pairs
    from sixfold.cli.elsewhere import similar_texts
    from sixfold.types import ReuseContext

    asker = _asker(settings)
    with console.steps("Similar texts", ask.pairs) as report:
        return similar_texts(asker, pairs(ask.pairs, ask.sentences, ask.seed), ReuseContext().recompute, report)


def _asker(settings: EngineConfig) -> Asker:
    from sixfold.cli.elsewhere import Asker
    from sixfold.engine.loader import load_engine

    with console.busy(f"Loading {settings.model}"):
        return Asker(load_engine(settings))


def print_reuse(found: dict[str, Any]) -> None:
    known = "one by one" if found["known_alone"] else "in another order"
    console.table(
        f"\n{found['chunks']} chunks of {found['chunk_tokens']} tokens, known {known} ({found['text']})",
        ("computed again", "first token", "faster", "KL, answer", "same", "KL, text", "same"),
        [
            (
                _percent(one["recomputed_share"]),
                f"{one['ttft_ms']:.0f} ms",
                f"{one['times_faster']:.2f} times",
                f"{one['kl_answer']:.4f}",
                _percent(one["agreement_answer"]),
                f"{one['kl_text']:.4f}",
                _percent(one["agreement_text"]),
            )
            for one in found["curve"]
        ],
        note=f"{found['curve'][0]['prompts']} prompts; all computed: {found['ttft_computed_ms']:.0f} ms. KL in nats "
        "and the same most likely token,\nat 64 positions of the answer to the computed prompt, and of the text.",
    )


def print_similar(found: dict[str, Any]) -> None:
    console.table(
        "\nTexts that differ in a fact from one that is known",
        ("kind", "pairs", "right, computed", "right, reused", "the other's fact", "answers differ"),
        [
            (name, *(str(one[key]) for key in ("pairs", "right_computed", "right", "false_accepts", "different")))
            for name, one in found["kinds"].items()
        ],
        note=f"{_percent(found['computed_share'])} of the tokens were computed, {found['reused_tokens']} of "
        f"{found['prompt_tokens']} reused; first token {found['times_faster']:.1f} times sooner.",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
