"""`perdure` and `kubectl perdure`: finds the command, and turns whatever goes wrong into one line and an exit code.

Imports click and nothing heavier: a command's module is imported when the command is used, so that `--help` and shell
completion are quick.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import click

DEBUG_VARIABLE = "PERDURE_DEBUG"
"""Set to 1 to see the traceback of an unexpected error in a command that otherwise prints one line."""

_COMMANDS = {
    "standalone": ("perdure.cli.processes", "Run controller and agent in one process, for one machine."),
    "controller": ("perdure.cli.processes", "Run the controller: it binds runtimes to nodes. One per cluster."),
    "agent": ("perdure.cli.processes", "Run the agent: it runs what is bound to this node. One per node."),
    "history": ("perdure.cli.history", "Show what was done to runtimes, when, why, and how it ended."),
    "top": (
        "perdure.cli.top",
        "Show everything at a glance: phases, failures, what is under way, due and stuck, archives.",
    ),
    "cleanup": ("perdure.cli.cleanup", "Clean a stopped runtime up now; its data is archived first."),
    "archive": (
        "perdure.cli.archive",
        "Look after archives: ls lists them, reindex enters what the stores hold into the ledger again.",
    ),
    "nodes": ("perdure.cli.nodes", "Show the nodes, and data on them that no object claims; lift a freeze."),
    "version": ("perdure.cli.version", "Show the version."),
}
"""Where each command is, and its line in `--help`."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports only the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(_COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_module, line) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def perdure() -> None:
    """Runtimes that outlast their containers.

    Every option can also be set as an environment variable: --state-dir is PERDURE_STATE_DIR.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 it failed, 2 it was called wrongly, 130 interrupted."""
    name = _program_name()
    if os.environ.get(DEBUG_VARIABLE) != "1":
        sys.excepthook = _one_line
    try:
        code = perdure.main(args=arguments, prog_name=name, standalone_mode=False)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else name
        _say(name, f"{error.format_message().rstrip('.')}; see '{where} --help'")
        return error.exit_code
    except click.ClickException as error:
        _say(name, error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    return code if isinstance(code, int) else 0


def _program_name() -> str:
    """kubectl runs a file named `kubectl-perdure` for `kubectl perdure`."""
    return "kubectl perdure" if Path(sys.argv[0]).name == "kubectl-perdure" else "perdure"


def _say(name: str, message: str) -> None:
    click.echo(f"{name}: {click.style('error', fg='red')}: {message}", err=True)


def _one_line(kind: type[BaseException], error: BaseException, _where: TracebackType | None) -> None:
    """Called by the interpreter for what nobody expected, in place of a traceback."""
    _say(
        _program_name(),
        f"this should not happen: {kind.__name__}: {error}; "
        f"run it again with {DEBUG_VARIABLE}=1 and report what it prints",
    )


if __name__ == "__main__":
    sys.exit(main())
