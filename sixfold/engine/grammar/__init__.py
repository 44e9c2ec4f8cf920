"""Structured output: grammars compiled once, and where in its grammar each sequence is.

Owns: everything that knows llguidance, which is imported when the first grammar is compiled. Must not know: the step,
the scheduler, HTTP.
"""

from sixfold.engine.grammar.compiler import Grammar, Grammars
from sixfold.engine.grammar.matcher import GrammarMatcher

__all__ = ["Grammar", "GrammarMatcher", "Grammars"]
