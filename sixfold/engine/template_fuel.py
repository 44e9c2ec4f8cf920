"""How much a template may do: time, and the size of everything it makes.

Owns: :class:`Fuel`, which every operation of a template draws from, and the sizes of values. Must not know: jinja2.

A thread cannot be stopped from outside, so a hostile template must be stopped before each operation that could be
large: the sandbox asks here first. Text costs one unit a character, and a container costs ATOM for each element at any
depth, counted once for each path to it: ``[a, a]`` built over and over costs what printing or comparing it would.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any

ATOM = 8  # units for one element of a container
DEEPEST = 100  # nesting of containers
_CHECK_EVERY = 32  # draws between two looks at the clock


class OutOfFuel(Exception):
    """The template did too much; the message says what ran out."""


class Fuel:
    """What is left for one rendering. Processor time, not wall time: a busy neighbour must not fail a request."""

    def __init__(self, units: int, seconds: float) -> None:
        self._units = units
        self._deadline = time.thread_time() + seconds
        self._seconds = seconds
        self._draws = 0
        # containers cannot change in the sandbox, so a size stays true; the object is kept so that its id stays its own
        self._sizes: dict[int, tuple[Any, int, int]] = {}

    def draw(self, units: int) -> None:
        """Takes units; call it before doing what costs them. Raises OutOfFuel."""
        self._units -= max(units, 0)
        if self._units < 0:
            raise OutOfFuel("it makes more text and values than any chat needs")
        self._draws += 1
        if self._draws % _CHECK_EVERY == 0 or units > 10_000:
            self.check_time()

    def check_time(self) -> None:
        if time.thread_time() > self._deadline:
            raise OutOfFuel(f"it ran longer than {self._seconds:g} s")

    def draw_for(self, *values: Any) -> None:
        """Takes what copying or printing the values costs."""
        self.draw(1 + sum(self.size(value) for value in values))

    def draw_to_compare(self, value: Any) -> None:
        """Takes what comparing a value costs: text compares fast, containers element by element."""
        self.draw(1 + (len(value) >> 6 if isinstance(value, str) else self.size(value)))

    def draw_to_hold(self, *values: Any) -> None:
        """Takes what keeping values in something new costs: the elements of containers, not their text."""
        self.draw(ATOM * sum(1 + self._measure(value)[1] for value in values))

    def size(self, value: Any) -> int:
        """Units of a value: characters, digits, or elements with all they hold."""
        characters, elements = self._measure(value)
        return characters + ATOM * elements

    def _measure(self, value: Any, depth: int = 0) -> tuple[int, int]:
        """Characters in a value, and elements in it at any depth."""
        if isinstance(value, str | bytes):
            return len(value), 0
        if isinstance(value, int):
            return 1 + value.bit_length() // 3, 0
        if not isinstance(value, list | tuple | dict | set | frozenset):
            return 1, 0  # numbers, None, and objects that print as a few words
        if (known := self._sizes.get(id(value))) is not None:
            return known[1], known[2]
        if depth > DEEPEST:
            raise OutOfFuel(f"it nests values deeper than {DEEPEST}")
        characters = elements = 0
        for member in [*value, *value.values()] if isinstance(value, dict) else value:
            inner = self._measure(member, depth + 1)
            characters += inner[0]
            elements += 1 + inner[1]
            if characters + ATOM * elements > self._units:
                raise OutOfFuel("it makes more text and values than any chat needs")
        self._sizes[id(value)] = (value, characters, elements)
        return characters, elements


FUEL: ContextVar[Fuel] = ContextVar("template_fuel")  # of the rendering that runs in this thread
