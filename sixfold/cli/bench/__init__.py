"""``sixfold bench``: how fast a model, its kernels and a server are.

Owns: the list of benchmarks. Must not know: how anything is timed (``cli/timing.py`` and the room ``bench``).
"""

from __future__ import annotations

import typer

from sixfold.cli.bench import decode, growth, kernels, kv, latency, serve, start, throughput

app = typer.Typer(help="Measure how fast a model runs on this machine.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Measure how fast a model runs on this machine."""


app.command()(kernels.kernels)
app.command()(latency.latency)
app.command()(throughput.throughput)
app.command()(growth.growth)
app.command()(serve.serve)
app.command()(start.start)
app.command()(kv.kv)
app.command()(decode.decode)
