"""Where the ledger is: from `--database-url`, its variable or `--database-url-file`; for every command that needs it.

No message here repeats the URL: there is a password in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perdure.cli.errors import CommandFailed

if TYPE_CHECKING:
    from perdure.cli.settings import DatabaseUrl


def read_database_url(given: dict[str, Any]) -> DatabaseUrl | None:
    """The URL among a command's options, or None. Raises `UsageError` or `CommandFailed`."""
    from perdure.cli.settings import DatabaseUrl

    url: str | None = given["database_url"]
    file: Path | None = given["database_url_file"]
    if url and file:
        raise click.UsageError("--database-url and --database-url-file are both set; choose one.")
    if file:
        try:
            url = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise CommandFailed(
                f"cannot read the database URL from {file}: {why}; check --database-url-file"
            ) from error
    if not url:
        if file:
            raise CommandFailed(f"the database URL cannot be in {file}: it is empty; put the URL there")
        return None
    return DatabaseUrl(url)


def require_database_url(given: dict[str, Any]) -> DatabaseUrl:
    """The same, for what cannot do without it."""
    url = read_database_url(given)
    if url is None:
        raise click.UsageError("Where is the ledger? Set PERDURE_DATABASE_URL or --database-url-file.")
    return url
