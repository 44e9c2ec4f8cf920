"""The filters and tests that chat templates have, each drawing from the fuel of the rendering before it works.

Owns: which of jinja2's filters there are, and bounded versions of those whose result can be much larger than what they
are given. Must not know: syntax trees or messages. Filters that no chat template needs (``center``, ``batch``,
``wordwrap`` ...) are left out: a filter that is not there needs no bound.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import markupsafe
from jinja2 import filters

from sixfold.engine.template_fuel import FUEL, Fuel, OutOfFuel


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Filters that look at the top of a value only; they cost their elements.
_LIGHT = _names(
    "default d first last length count list items map select reject selectattr rejectattr reverse abs int float"
)
# Filters that read or copy all of it.
_HEAVY = _names("upper lower title capitalize trim sort unique min max dictsort groupby wordcount join replace string")


def bounded_filters(available: dict[str, Any]) -> dict[str, Any]:
    """What templates may use of jinja2's filters."""
    kept = {name: _costly(available[name], heavy=name in _HEAVY) for name in _LIGHT | _HEAVY}
    return kept | _OWN


def bounded_tests(available: dict[str, Any]) -> dict[str, Any]:
    """jinja2's tests, which may compare long values."""
    return {name: _costly_test(test) for name, test in available.items()}


def _costly(function: Callable[..., Any], *, heavy: bool) -> Callable[..., Any]:
    """A filter that draws before it runs, for its arguments and for what it gives back."""
    hidden = hasattr(function, "jinja_pass_arg")  # its first argument is the environment or context

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        fuel = FUEL.get()
        values = [collected(value) if heavy else value for value in args[hidden:]]
        if heavy:
            fuel.draw_for(*values, *kwargs.values())
            _draw_for_growth(fuel, function.__name__, values, kwargs)
        else:
            fuel.draw(1)
        result = function(*args[:hidden], *values, **kwargs)
        if isinstance(result, list | tuple):
            fuel.draw_to_hold(*result)
        return result

    return counted


def collected(value: Any) -> Any:
    """What a lazy filter would give, drawn for element by element, so that its size is known."""
    if not isinstance(value, Iterator):
        return value
    fuel, elements = FUEL.get(), []
    for element in value:
        fuel.draw_to_hold(element)
        elements.append(element)
    return elements


def _costly_test(function: Any) -> Callable[..., Any]:
    hidden = hasattr(function, "jinja_pass_arg")

    @functools.wraps(function)
    def counted(*args: Any) -> Any:
        for value in args[hidden:]:
            FUEL.get().draw_to_compare(value)
        return function(*args)

    return counted


def _draw_for_growth(fuel: Fuel, name: str, values: list[Any], kwargs: dict[str, Any]) -> None:
    """For the filters whose result can be longer than what they are given."""
    if name == "do_replace" and len(values) >= 3:
        text, old, new = (str(value) for value in values[:3])
        fuel.draw(replaced_length(text, old, new))
    elif name in ("sync_do_join", "do_join"):
        separator = str(values[1] if len(values) > 1 else kwargs.get("d", ""))
        fuel.draw(len(separator) * (len(values[0]) if hasattr(values[0], "__len__") else 1))


def replaced_length(text: str, old: str, new: str) -> int:
    return len(text) + text.count(old) * len(new)


def draw_for_percent(fuel: Fuel, template: str, values: Any) -> None:
    if re.search(r"%(\([^)]*\))?[-#0 +.\d]*(\d{4}|\*)", template):
        raise OutOfFuel("it formats with a computed width, or one of more than 999")
    fuel.draw(len(template) + template.count("%") * fuel.size(values))


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
            sort_keys: bool = False) -> str:  # fmt: skip
    """As transformers defines it: plain JSON, no HTML escapes."""
    if indent is not None and not (isinstance(indent, int) and indent <= 16):
        raise OutOfFuel("it indents JSON by more than 16")
    fuel, chunks = FUEL.get(), []
    value = collected(value)
    fuel.draw_for(value)
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    for chunk in encoder.iterencode(value):
        fuel.draw(len(chunk))
        chunks.append(chunk)
    return "".join(chunks)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    step = len(width) if isinstance(width, str) else max(width, 0)
    text = str(text)
    FUEL.get().draw(len(text) + (2 + len(text.splitlines())) * step)
    return filters.do_indent(text, width, first, blank)


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if not -20 <= precision <= 20:
        raise OutOfFuel("it rounds to more than 20 digits")
    return filters.do_round(value, precision, method)


def _sum(values: Any, attribute: str | None = None, start: float = 0) -> float:
    values = collected(values)
    FUEL.get().draw_for(values)
    numbers = [value[attribute] if attribute is not None else value for value in values]
    if not all(isinstance(number, int | float) for number in [start, *numbers]):
        raise TypeError("the filter sum adds numbers only")
    return sum(numbers, start)


def _format_filter(template: Any, *args: Any, **kwargs: Any) -> str:
    values = kwargs or args
    draw_for_percent(FUEL.get(), str(template), values)
    return str(template) % values


def _escape(text: Any) -> str:
    FUEL.get().draw(6 * FUEL.get().size(text))
    return markupsafe.escape(str(text))


def _safe(text: Any) -> Any:
    return text  # nothing here is escaped, and Markup would escape what is joined to it


_OWN: dict[str, Callable[..., Any]] = {
    "tojson": _tojson,
    "indent": _indent,
    "round": _round,
    "sum": _sum,
    "format": _format_filter,
    "escape": _escape,
    "e": _escape,
    "safe": _safe,
}
