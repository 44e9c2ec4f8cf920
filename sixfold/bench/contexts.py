"""Prompts that share context and no prefix: the same chunks in another order, and texts that differ in a fact.

Owns: how they are made. Must not know: engines, or what is measured with them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

QUESTION = 32  # tokens after the chunks


@dataclass(frozen=True)
class Permuted:
    """A prompt of known chunks in a new order."""

    chunks: list[list[int]]  # in the order of the prompt that was there before
    order: list[int]
    question: list[int]  # what follows one of the chunks in its text
    text: list[int]  # what follows that

    @property
    def donor(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk]

    @property
    def prompt(self) -> list[int]:
        return [token for index in self.order for token in self.chunks[index]] + self.question


def permuted(
    tokens: Sequence[int], sets: int, orders: int, chunks: int, length: int, after: int, seed: int
) -> Iterator[list[Permuted]]:  # fmt: skip
    """``sets`` times prompts of ``chunks`` pieces of a text in ``orders`` orders, none of which begins as before.

    Every prompt ends with 32 tokens that follow one of its chunks in the text; ``after`` are those behind them.
    """
    draw = random.Random(seed)
    last = len(tokens) - length - QUESTION - after
    if last < chunks * length:
        raise ValueError(f"a text of {len(tokens)} tokens is too short")
    for _ in range(sets):
        starts = [draw.randrange(last) for _ in range(chunks)]
        pieces = [list(tokens[start : start + length]) for start in starts]
        made: list[Permuted] = []
        while len(made) < orders:
            order = draw.sample(range(chunks), chunks)
            if order[0] == 0:  # that would be a known prefix
                continue
            asked = starts[draw.randrange(chunks)] + length
            behind = asked + QUESTION
            made.append(
                Permuted(pieces, order, list(tokens[asked:behind]), list(tokens[behind : behind + after]))
            )  # fmt: skip
        yield made


@dataclass(frozen=True)
class Pair:
    """Two texts that differ in a fact, and end in a cue that asks for it."""

    kind: str
    known: str  # was there before
    asked: str
    known_fact: str
    fact: str


def _words(text: str) -> list[str]:
    return text.split()


_NAMES = _words(
    "Maria Julia Peter Anna Robert Helen Martin Laura Victor Clara Daniel Sophie Thomas Irene Oscar Paula Simon Nora "
    "Felix Alice"
)
_CITIES = _words(
    "Lisbon Vienna Oslo Madrid Dublin Prague Athens Warsaw Geneva Milan Boston Chicago Denver Seattle Toronto"
)
_THINGS = _words(
    "harbour library museum market theatre station garden bridge school mill castle bakery tower chapel inn"
)
_MONTHS = _words(
    "January February March April May June July August September October November December"
)  # fmt: skip
_ADJECTIVES = _words("old quiet narrow famous small bright wooden distant crowded pleasant cold windy green tall")


def _sentence(draw: random.Random) -> str:
    pick = draw.choice
    forms: tuple[Callable[[], str], ...] = (
        lambda: f"The {pick(_ADJECTIVES)} {pick(_THINGS)} stands near the {pick(_THINGS)} and is open in summer.",
        lambda: f"{pick(_NAMES)} walked to the {pick(_THINGS)} with {draw.randrange(2, 40)} other visitors.",
        lambda: f"In {pick(_MONTHS)} the road to {pick(_CITIES)} was closed for {draw.randrange(2, 30)} days.",
        lambda: f"Many people in {pick(_CITIES)} remember the {pick(_ADJECTIVES)} {pick(_THINGS)} of their childhood.",
        lambda: f"A {pick(_ADJECTIVES)} path leads from the {pick(_THINGS)} to a {pick(_ADJECTIVES)} {pick(_THINGS)}.",
        lambda: f"{pick(_NAMES)} told {pick(_NAMES)} that the {pick(_THINGS)} had been painted twice that year.",
    )
    return pick(forms)()


def prose(sentences: int, draw: random.Random) -> str:
    return " ".join(_sentence(draw) for _ in range(sentences))


def _number(draw: random.Random) -> str:
    return str(draw.randrange(1000, 10000))


def _date(draw: random.Random) -> str:
    return f"{draw.choice(_MONTHS)} {draw.randrange(1, 29)}"


# kind: how a fact is drawn, the sentences that state it (all of them do), and the cue that asks for it
_FACTS: dict[str, tuple[Callable[[random.Random], str], tuple[str, ...], str]] = {
    "number": (_number, ("The secret code of the vault is {}.",), "The secret code of the vault is"),
    "name": (
        lambda draw: draw.choice(_NAMES),
        ("The keeper of the lighthouse is called {}.", "Every evening {} lights the lamp."),
        "The keeper of the lighthouse is called",
    ),
    "date": (_date, ("The annual festival begins on {}.",), "The annual festival begins on"),
    "place": (
        lambda draw: draw.choice(_CITIES),
        ("The head office of the company is in {}.", "All letters are sent to {}."),
        "The head office of the company is in",
    ),
}


def pairs(count: int, sentences: int, seed: int) -> Iterator[Pair]:
    """Texts of about ``sentences`` sentences with a fact somewhere in the first half, of all kinds in turn."""
    draw = random.Random(seed)
    for index in range(count):
        kind = list(_FACTS)[index % len(_FACTS)]
        make, statements, cue = _FACTS[kind]
        known = fact = make(draw)
        while fact == known:
            fact = make(draw)
        before = draw.randrange(2, sentences // 2)
        parts = [prose(before, draw)]
        for at, statement in enumerate(statements):
            last = at == len(statements) - 1
            parts += [statement, prose(sentences - before if last else 4, draw)]
        text = " ".join(parts) + f"\n\nQuestion about the text above. {cue}"
        yield Pair(kind, text.format(*[known] * 2), text.format(*[fact] * 2), known, fact)
