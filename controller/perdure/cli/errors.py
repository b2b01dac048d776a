"""The one error that a command raises: `main` prints it as a line."""

from __future__ import annotations

import click


class CommandFailed(click.ClickException):
    """What was being done and why it failed, and what to do next if `problem` does not say so. Exit code 1."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(f"{problem}; {hint}" if hint else problem)
