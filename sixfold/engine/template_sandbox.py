"""A jinja2 sandbox that bounds what a hostile chat template can use: attributes, time, memory, output.

Owns: which filters and methods templates have, and the accounting of each operation. Must not know: chat messages.

jinja2's own sandbox guards attributes but not size: ``'x' * 10**9`` or a block that captures itself twice in a loop
would take the process down. So the parsed template is rewritten: loops, macros, text, ``~``, literals, slices and
comparisons pass through filters (with names that no template can spell) that draw from the :class:`Fuel` of the
rendering; operators, calls, filters and output are intercepted where jinja2 offers it. Nothing is computed while
compiling, when no fuel exists.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from sixfold.engine.template_filters import bounded_filters, bounded_tests, collected, draw_for_percent, replaced_length
from sixfold.engine.template_fuel import FUEL, Fuel, OutOfFuel

MAX_NODES = 20_000  # of the syntax tree: ten times the largest templates in use; compiling 20,000 takes a second or two
_MAX_BITS = 4096  # of an integer


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_METHODS: dict[type, frozenset[str]] = {
    str: _names(
        "strip lstrip rstrip upper lower title capitalize swapcase casefold startswith endswith find rfind index "
        "rindex count split rsplit splitlines partition rpartition replace join removeprefix removesuffix isdigit "
        "isdecimal isnumeric isalpha isalnum isspace isupper islower istitle isascii isidentifier zfill"
    ),
    dict: _names("get items keys values copy"),
    list: _names("index count copy"),
    tuple: _names("index count"),
}
_WITHOUT_METHODS = (int, float, bytes, range, set, frozenset, type, types.FunctionType, types.MethodType)


class _SilentNamespace(Namespace):
    """``namespace()`` whose printed form does not show what it holds, which could be itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Generation(Extension):
    """``{% generation %}`` marks what the model wrote, for training; here it is only its contents."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Compiles and runs chat templates as transformers does, within the fuel in :data:`FUEL`."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_finalize,
            extensions=[loopcontrols, _Generation],
        )  # fmt: skip
        self.filters = bounded_filters(self.filters) | _ACCOUNTING
        self.tests = bounded_tests(self.tests)
        self.globals = {
            "range": self.globals["range"],
            "dict": _dict,
            "namespace": _SilentNamespace,
            "cycler": self.globals["cycler"],
            "joiner": self.globals["joiner"],
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        if sum(1 for _ in tree.find_all(nodes.Node)) > MAX_NODES:
            raise jinja2.TemplateSyntaxError(f"it has more than {MAX_NODES} elements", 1)
        return _instrument(tree)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, methods in _METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        return not isinstance(obj, _WITHOUT_METHODS) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``"{}".format(...)`` with bounded widths; ``format_map`` is left to be refused as unsafe."""
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str) and getattr(value, "__name__", "") == "format":
            return functools.partial(self._format, owner)
        return None

    def _format(self, template: str, /, *args: Any, **kwargs: Any) -> str:
        fuel = FUEL.get()
        fuel.draw((1 + template.count("{")) * (len(template) + fuel.size(args) + fuel.size(kwargs)))
        return _BoundedFormatter(self).vformat(template, args, kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _draw_for_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        fuel = FUEL.get()
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            args = tuple(collected(value) for value in args)
            _draw_for_method(fuel, obj.__name__, owner, args)
        else:
            fuel.draw_to_hold(*args, *kwargs.values())
            if isinstance(owner, list | tuple):
                fuel.draw_for(owner)
        return super().call(context, obj, *args, **kwargs)


class _BoundedFormatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        if re.search(r"\d{4}", format_spec):
            raise OutOfFuel("it formats with a width of more than 999")
        FUEL.get().draw_for(value)
        return super().format_field(_allowed(value), format_spec)


def _instrument(template: nodes.Template) -> nodes.Template:
    """Puts the accounting filters around everything that has no hook."""
    for loop in template.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        loop.body.insert(0, nodes.ExprStmt(_filter("draw", nodes.Const(1))))  # type: ignore[attr-defined]
    for output in list(template.find_all(nodes.Output)):
        text = sum(len(node.data) for node in output.nodes if isinstance(node, nodes.TemplateData))
        output.nodes.insert(0, _filter("draw", nodes.Const(1 + text)))
    return _Rewriter().visit(template)  # type: ignore[no-any-return]


def _filter(name: str, value: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, f"sixfold {name}", list(args), [], None, None)


class _Rewriter(NodeTransformer):
    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter("concat", nodes.Tuple(node.nodes, "load"))

    def visit_List(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _filter("hold", node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filter("hold", node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _filter("slice", node.node, *(bound or nodes.Const(None) for bound in bounds))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _compared(node.expr)
        for operand in node.ops:
            operand.expr = _compared(operand.expr)
        return node


def _compared(expression: nodes.Expr) -> nodes.Expr:
    return expression if isinstance(expression, nodes.Const) else _filter("compare", expression)


def _draw(units: int) -> str:
    FUEL.get().draw(units)
    return ""


def _concat(parts: tuple[Any, ...]) -> str:
    FUEL.get().draw_for(*parts)
    return "".join(map(str, parts))


def _hold(value: Any) -> Any:
    FUEL.get().draw_to_hold(*(value if not isinstance(value, dict) else [*value, *value.values()]))
    return value


def _slice(value: Any, start: Any, stop: Any, step: Any) -> Any:
    fuel = FUEL.get()
    fuel.draw(1 + len(value)) if isinstance(value, str) else fuel.draw_to_hold(value)
    return value[start:stop:step]


def _compare(value: Any) -> Any:
    FUEL.get().draw_to_compare(value)
    return value


@pass_context  # with a context, jinja2 cannot run it while compiling
def _finalize(_context: Context, value: Any) -> Any:
    FUEL.get().draw_for(value)
    return _allowed(value)


def _allowed(value: Any) -> Any:
    """Raises for what an unsafe attribute left behind, which jinja2 itself would print as nothing."""
    if isinstance(value, jinja2.Undefined) and value._undefined_exception is SecurityError:
        raise SecurityError(value._undefined_message)
    return value


def _draw_for_method(fuel: Fuel, name: str, text: str, args: tuple[Any, ...]) -> None:
    fuel.draw_for(text, *args)
    if name == "replace" and len(args) >= 2:
        fuel.draw(replaced_length(text, str(args[0]), str(args[1])))
    elif name == "join" and args:
        fuel.draw(len(text) * (len(args[0]) if hasattr(args[0], "__len__") else 1))
    elif name in ("split", "rsplit", "splitlines"):
        fuel.draw(8 * (text.count(args[0]) if args and isinstance(args[0], str) and args[0] else len(text) // 2))
    elif name == "zfill":
        fuel.draw(int(args[0]))


def _draw_for_operator(operator: str, left: Any, right: Any) -> None:
    fuel = FUEL.get()
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * max(right, 0) > _MAX_BITS:
            raise OutOfFuel("it makes a number that is too large")
    elif operator == "*":
        _draw_for_product(fuel, left, right)
    elif operator == "%" and isinstance(left, str):
        draw_for_percent(fuel, left, right)
    elif operator == "+" and isinstance(left, list | tuple):
        fuel.draw_to_hold(left, right)
    else:
        fuel.draw_for(left, right)


def _draw_for_product(fuel: Fuel, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MAX_BITS:
            raise OutOfFuel("it makes a number that is too large")
        fuel.draw(1)
        return
    times = next((value for value in (left, right) if isinstance(value, int)), 1)
    fuel.draw(max(times, 1) * (fuel.size(left) + fuel.size(right)))


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    result = dict(*(collected(value) for value in args), **kwargs)
    FUEL.get().draw_to_hold(result)
    return result


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateRuntimeError(str(message)[:1000])


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 200 or re.search(r"%[-_0^#EO]*\d", pattern):
        raise OutOfFuel("it formats the date with a width")
    return datetime.now().strftime(pattern)


_ACCOUNTING: dict[str, Callable[..., Any]] = {
    "sixfold draw": _draw,
    "sixfold concat": _concat,
    "sixfold hold": _hold,
    "sixfold slice": _slice,
    "sixfold compare": _compare,
}
