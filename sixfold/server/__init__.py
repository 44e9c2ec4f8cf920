"""The HTTP server: the APIs that clients already speak, on top of the async engine."""
