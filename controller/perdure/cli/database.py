"""Where the ledger is: from `--database-url`, its variable or `--database-url-file`; how a command asks it, and whether
it knows what is asked for.

No message here repeats the URL: there is a password in it.
"""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from perdure.cli.errors import CommandFailed

if TYPE_CHECKING:
    from perdure.api.names import Kind
    from perdure.cli.settings import DatabaseUrl

Answer = TypeVar("Answer")


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


def find_ledger(given: dict[str, Any]) -> str:
    """The connection string for a command that reads: the one given, else that of a standalone's own PostgreSQL in the
    state folder. Raises `CommandFailed`, `UsageError`."""
    from perdure.ledger.embedded import EmbeddedPostgres
    from perdure.reconcile.ports.errors import LedgerUnavailable

    url = read_database_url(given)
    if url is not None:
        return url.reveal()
    state: Path = given["state_dir"]
    try:
        embedded = EmbeddedPostgres(state)
    except LedgerUnavailable as error:
        raise CommandFailed(str(error)) from error
    if not embedded.data.exists():
        raise click.UsageError(
            f"Where is the ledger? There is no PostgreSQL of perdure standalone in {state}: set PERDURE_DATABASE_URL, "
            "--database-url-file or --state-dir."
        )
    return embedded.url


def ask_ledger(question: Coroutine[Any, Any, Answer]) -> Answer:
    """Run it to its end. Raises `CommandFailed` for a ledger that does not answer, without its password."""
    from perdure.cli.blocking import block_on
    from perdure.reconcile.ports.errors import LedgerUnavailable
    from perdure.telemetry import logs

    # The pool warns of each failed attempt; here the last word is enough.
    logs.configure(logs.LogLevel.ERROR)
    try:
        return block_on(question)
    except LedgerUnavailable as error:
        raise CommandFailed(logs.redact(str(error))) from error


def require_known(url: str, target: tuple[Kind, str], namespace: str | None) -> None:
    """There is nothing to show of it: because nothing matches, or because nobody ever heard of it? Raises
    `CommandFailed`. `namespace` None: any."""
    from perdure.ledger.history import find_lives

    kind, name = target
    lives = ask_ledger(find_lives(url, name))
    if any(life.kind is kind and namespace in (None, life.namespace) for life in lives):
        return
    others = sorted({f"{life.kind.short}/{life.name} -n {life.namespace}" for life in lives})
    hint = f"it knows {', '.join(others[:5])}" if others else "it knows no runtime of that name in any namespace"
    raise CommandFailed(
        f"the ledger never heard of {kind.value} {namespace or '*'}/{name}",
        f"{hint}; check the kind, the name and the namespace (-n), and that this is its cluster's ledger",
    )
