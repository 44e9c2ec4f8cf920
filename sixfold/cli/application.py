"""The application: every command under its name.

Owns: the list of commands. Must not know: what they do; each imports what it needs when it runs, so that
``sixfold --help`` is quick.
"""

from __future__ import annotations

import typer

from sixfold.cli import bench, chat, doctor, evaluate, run, serve, show, stored
from sixfold.cli.ending import Group

app = typer.Typer(
    cls=Group,
    name="sixfold",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # an exception that is no SixfoldError is our bug: show all of it
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain help, which needs no import of rich
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"sixfold {version('sixfold')}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Run, serve and measure language models on this machine.

    Settings: flag > environment (SIXFOLD_...) > ./sixfold.toml or config.toml in SIXFOLD_HOME > default.
    """


app.command()(serve.serve)
app.command()(chat.chat)
app.command()(run.run)
app.command()(stored.pull)
app.command("list")(stored.list_)
app.command()(stored.rm)
app.command()(show.show)
app.command()(doctor.doctor)
app.add_typer(evaluate.app, name="eval")
app.add_typer(bench.app, name="bench")
