"""The one error that a command raises: `main` prints it as a line."""

from __future__ import annotations

import click


class CommandFailed(click.ClickException):
    """What was being done, why it failed, and what to do next. Exit code 1."""

    def __init__(self, what: str, *, why: str, hint: str) -> None:
        super().__init__(f"{what}: {why}; {hint}")
