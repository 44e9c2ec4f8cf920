"""Measurements: kernels against the machine's limits, growth, and load on servers over HTTP. Knows no engine."""
