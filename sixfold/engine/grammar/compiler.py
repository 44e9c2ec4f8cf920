"""Compiles what a request demands of its output, once for all requests that demand the same, off the engine's thread.

Owns: the cache of compiled grammars, the limits of their size and time, llguidance's view of the tokenizer. Must not
know: sequences, the step, HTTP.

A grammar is compiled on a thread of its own, whose caller waits for at most ``COMPILE_SECONDS``; llguidance limits what
a grammar may take of memory then and in each step (``_LIMITS``), so that a hostile one costs milliseconds and ends with
an error of its own request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from sixfold.engine.constraint import TokenConstraint
from sixfold.engine.grammar.matcher import GrammarMatcher
from sixfold.engine.grammar.schema import children, prepare, read_schema
from sixfold.engine.grammar.tokens import GrammarTokenizer, tokens_of
from sixfold.errors import InvalidRequestError, OverloadedError, SixfoldError
from sixfold.types import StructuredOutputsParams

MAX_TEXT = 512 << 10  # characters of a schema, regex or grammar
MAX_CHOICES = 20_000
COMPILE_SECONDS = 10.0
MAX_GRAMMARS = 32  # kept compiled; a hostile one may hold some 40 MB
_LIMITS: dict[str, Any] = {
    "step_max_items": 5_000,  # Earley items a mask: a few milliseconds
    "max_items_in_row": 1_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "max_lexer_states": 20_000,  # 1 to 2 kB each
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
_DIRECTIVES = ("%json", "%llguidance")  # their contents would pass by the checks of schemas


@dataclass(eq=False)
class Grammar:
    """A compiled grammar. ``prototype``: a matcher at its beginning, to be copied; copies share what they learn."""

    source: str  # llguidance's own form
    prototype: Any


class Grammars:
    """All grammars of one tokenizer. Any thread may compile, and fill masks of different matchers."""

    def __init__(self, tokenizer: GrammarTokenizer, vocab_size: int) -> None:
        self.jump_ahead = True  # tokens that a grammar forces are appended without asking the model
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._kept: OrderedDict[StructuredOutputsParams, Future[Grammar]] = OrderedDict()
        self._alive: WeakValueDictionary[StructuredOutputsParams, Grammar] = WeakValueDictionary()
        self._waiting: Counter[Future[Grammar]] = Counter()  # how many wait for each that is not done
        self._lock = threading.RLock()  # over these three; cancelling calls back with it held
        self._renewing = threading.Lock()
        self._loading = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._tokens: Any = None  # llguidance's, made by the first compilation

    def submit(self, demand: StructuredOutputsParams) -> Future[Grammar]:
        """The grammar, or the InvalidRequestError that says why there is none. Does not wait."""
        with self._lock:
            known = self._kept.get(demand)
            if known is not None:
                self._kept.move_to_end(demand)
                return known
            made = self._kept[demand] = self._begin(demand)
            done = [old for old, future in self._kept.items() if future.done() and future is not made]
            for old in done[: max(0, len(self._kept) - MAX_GRAMMARS)]:  # others wait for what is not done
                del self._kept[old]
        made.add_done_callback(lambda done: self._forget_failure(demand, done))
        return made

    def compile(self, demand: StructuredOutputsParams) -> Grammar:
        """Waits for it. Raises InvalidRequestError, or OverloadedError if its turn did not come."""
        with self._wait(demand) as made:
            try:
                return made.result(COMPILE_SECONDS)
            except Late:
                raise _late(made) from None

    async def compiled(self, demand: StructuredOutputsParams) -> Grammar:
        """Waits for it without holding up the event loop. While the caller keeps it, :meth:`compile` of the same demand
        finds it at once. Raises what that raises."""
        with self._wait(demand) as made:
            try:  # shielded, for others may wait for the same
                return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(made)), COMPILE_SECONDS)
            except TimeoutError:
                raise _late(made) from None

    def fill(self, matcher: TokenConstraint, row: NDArray[np.uint32]) -> None:
        """Writes its mask into the row; one that can not go on gets an empty one and its ``error``."""
        assert isinstance(matcher, GrammarMatcher)
        matcher.fill(row)

    def fresh(self, grammar: Grammar, spent: Any) -> Any:
        """A prototype other than ``spent``, whose copies have learnt up to their limit. One for all of them: the first
        to ask compiles it."""
        with self._renewing:
            if grammar.prototype is spent:
                grammar.prototype = self._matcher(grammar.source)
            return grammar.prototype

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, demand: StructuredOutputsParams) -> Future[Grammar]:
        """Under way; or done, if somebody still holds it."""
        held = self._alive.get(demand)
        if held is not None:
            made: Future[Grammar] = Future()
            made.set_result(held)
            return made
        if self._pool is None:
            self._pool = ThreadPoolExecutor(2, "sixfold-grammar")
        return self._pool.submit(self._make, demand)

    def _make(self, demand: StructuredOutputsParams) -> Grammar:
        grammar = self._compile(demand)
        with self._lock:
            self._alive[demand] = grammar
        return grammar

    @contextlib.contextmanager
    def _wait(self, demand: StructuredOutputsParams) -> Iterator[Future[Grammar]]:
        """What nobody waits for any more is not begun: it would hold up those who wait."""
        with self._lock:
            made = self.submit(demand)
            self._waiting[made] += 1
        try:
            yield made
        finally:
            with self._lock:
                self._waiting[made] -= 1
                if not self._waiting[made]:
                    del self._waiting[made]
                    made.cancel()  # of no effect on one that has begun

    def _forget_failure(self, demand: StructuredOutputsParams, done: Future[Grammar]) -> None:
        """An error is not worth a place; the next request with the same fault makes it anew."""
        if done.cancelled() or done.exception() is not None:
            with self._lock:
                if self._kept.get(demand) is done:
                    del self._kept[demand]

    def _compile(self, demand: StructuredOutputsParams) -> Grammar:
        import llguidance  # 8 MB: not before it is needed

        with self._loading:
            if self._tokens is None:
                self._tokens = tokens_of(self._tokenizer, self._vocab_size)
        source = grammar_source(demand)
        problem = llguidance.LLMatcher.validate_grammar(source, self._tokens, limits=_limits())
        if problem and not llguidance_warns(problem):
            raise _refusal(demand, problem)
        grammar = Grammar(source, self._matcher(source))
        probe = grammar.prototype.deep_copy()
        probe.compute_bitmask()  # some faults show in the first step only
        if probe.is_error():
            raise _refusal(demand, probe.get_error())
        return grammar

    def _matcher(self, source: str) -> Any:
        import llguidance

        return llguidance.LLMatcher(self._tokens, source, log_level=0, limits=_limits())


def grammar_source(demand: StructuredOutputsParams) -> str:
    """llguidance's own form. Raises InvalidRequestError for what is refused before it is compiled."""
    from llguidance import LLMatcher, grammar_from

    check_size(demand)
    if demand.json_object or demand.json is not None:
        schema = {"type": "object"} if demand.json is None else read_schema(demand.json)
        schema = prepare(schema, close_objects=demand.disable_additional_properties)
        if schema is False:
            raise _wrong("The JSON schema is false", "nothing is valid", "Send a schema that something satisfies")
        schema = {} if schema is True else schema
        pattern = demand.whitespace_pattern
        if pattern and (problem := LLMatcher.validate_grammar(LLMatcher.grammar_from_regex(pattern))):
            raise _wrong("The whitespace_pattern is not supported", _plain(problem), "Send a regex like [ \\n]{0,2}")
        return LLMatcher.grammar_from_json_schema(_text(schema), overrides=_writing(demand))
    if demand.regex is not None:
        return LLMatcher.grammar_from_regex(demand.regex)
    if demand.choice is not None:
        return LLMatcher.grammar_from_regex("|".join(_literal(choice) for choice in demand.choice))
    text = demand.grammar or ""
    for directive in _DIRECTIVES:
        if directive in text:
            raise _wrong(f"The grammar uses {directive}", "it is not supported here", "Use json for a JSON Schema")
    try:
        return str(grammar_from("grammar", text))
    except ValueError as error:
        raise _wrong("The grammar is invalid", str(error)[:300], "Send Lark or GBNF") from None


def check_size(demand: StructuredOutputsParams) -> None:
    size = sum(map(len, (demand.json or "", demand.regex or "", demand.grammar or "", *(demand.choice or ()))))
    if size > MAX_TEXT or len(demand.choice or ()) > MAX_CHOICES:
        raise _wrong(
            "structured_outputs is too large", f"it has {size} characters",
            f"At most {MAX_TEXT} characters and {MAX_CHOICES} choices are compiled",
        )  # fmt: skip
    if demand.choice is not None and not (demand.choice and all(demand.choice)):
        raise _wrong("choice is empty or has an empty string", "", "Give non-empty strings")
    if demand.whitespace_pattern is not None and len(demand.whitespace_pattern) > 200:
        raise _wrong("whitespace_pattern is too long", "", "Use at most 200 characters")


def _late(made: Future[Grammar]) -> SixfoldError:
    if made.running():
        return too_slow()
    return OverloadedError(
        "The grammar was not compiled in time", cause=f"others were compiled first for {COMPILE_SECONDS:.0f} s",
        remedy="Send the request again later", param="structured_outputs",
    )  # fmt: skip


def too_slow() -> InvalidRequestError:
    return _wrong("The grammar is too complex", f"compiling it took over {COMPILE_SECONDS:.0f} s", "Simplify it")


def llguidance_warns(problem: str) -> bool:
    return problem.startswith("WARNING")


def _limits() -> Any:
    import llguidance

    return llguidance.LLParserLimits(**_LIMITS)


def _writing(demand: StructuredOutputsParams) -> Any:
    """How JSON is written. Fixed spaces by default: a model can not lose itself in whitespace, and a key with all
    around it is known at once."""
    fixed: dict[str, Any] = {"lenient": False, "coerce_one_of": False}
    if demand.whitespace_pattern is not None:
        return {**fixed, "whitespace_pattern": demand.whitespace_pattern}
    if demand.disable_any_whitespace:
        return {**fixed, "whitespace_flexible": False}
    return {**fixed, "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def _literal(text: str) -> str:
    """A regex that matches this text."""
    return "".join(f"\\{char}" if char in r"\.+*?()|[]{}^$#&-~/" else char for char in text)


def _text(schema: Any) -> str:
    return json.dumps(schema, ensure_ascii=False)


def _refusal(demand: StructuredOutputsParams, problem: str) -> InvalidRequestError:
    problem = _plain(problem)
    if demand.json is None:
        kind = "regex" if demand.regex is not None else "choice" if demand.choice is not None else "grammar"
        return _wrong(f"The {kind} is not supported", problem, "Lookarounds and back-references are not; mend the rest")
    schema = prepare(read_schema(demand.json), close_objects=demand.disable_additional_properties)
    pointer, deepest = _fault(schema, problem)
    return _wrong(
        f"The JSON schema is not supported: at {pointer or '/'}", deepest, "Leave it out, or say it another way"
    )


def _fault(schema: Any, problem: str) -> tuple[str, str]:
    """Where the deepest subschema is that is at fault by itself, and its fault."""
    import llguidance

    pointer, node, left = "", schema, 500
    roots = {name: schema[name] for name in ("$defs", "definitions") if isinstance(schema, dict) and name in schema}
    while isinstance(node, dict):
        for step, inner in children(node):
            left -= 1
            if left < 0 or not isinstance(inner, dict):
                continue
            text = _text({**roots, **inner})
            found = llguidance.LLMatcher.validate_grammar(
                llguidance.LLMatcher.grammar_from_json_schema(text), limits=_limits()
            )
            if found and not llguidance_warns(found):
                pointer, node, problem = pointer + step, inner, _plain(found)
                break
        else:
            break
    return pointer, problem


def _plain(problem: str) -> str:
    """llguidance's message as one line, in terms of what the caller sent."""
    if "oneOf constraints" in problem:
        return "the keyword oneOf is enforced only where its options are seen to exclude each other (use anyOf)"
    return " ".join(problem.replace("<non-verbose/>", "").split())[:300]


def _wrong(what: str, cause: str, remedy: str) -> InvalidRequestError:
    return InvalidRequestError(what, cause=cause, remedy=remedy, param="structured_outputs")
