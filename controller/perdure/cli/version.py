"""`perdure version`: of Perdure, the resources' API, and Python."""

from __future__ import annotations

import platform

import click

from perdure import __version__
from perdure.api import names
from perdure.cli import options
from perdure.cli.output import print_json


@click.command(short_help="Show the version.")
@options.output
def version(output: str) -> None:
    """Show the version of Perdure, of its API, and of the Python that runs it."""
    if output == "json":
        print_json({"perdure": __version__, "api": names.API_VERSION, "python": platform.python_version()})
    else:
        click.echo(f"perdure {__version__}, api {names.API_VERSION}, python {platform.python_version()}")
