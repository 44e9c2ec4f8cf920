"""Run as a program by test_process.py: a server around a slow fake engine; prints its URL when it is ready."""

from __future__ import annotations

import asyncio
import sys

from sixfold.config import ServerConfig
from sixfold.server.app import create_app
from sixfold.server.serve import _serve, bind, build_server
from tests.server.fake_engine import FakeEngine

if __name__ == "__main__":
    config = ServerConfig(port=0, drain_seconds=float(sys.argv[1]))
    app = create_app(FakeEngine(delay=float(sys.argv[2])), config)  # type: ignore[arg-type]
    listener = bind(config)
    asyncio.run(_serve(build_server(app, config), listener, lambda url, _: print(url, flush=True)))
    print("ended", flush=True)
