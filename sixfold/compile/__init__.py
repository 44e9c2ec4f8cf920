"""The compiler: a network's graph becomes a plan, a flat list of fused operators over packed weights."""

from sixfold.compile.plan import Plan, build, forget

__all__ = ["Plan", "build", "forget"]
