"""`perdure history KIND/NAME`: what was done to a runtime, from the ledger. It outlives the object, and so does this."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perdure.api import names
from perdure.api.names import Kind
from perdure.cli import options
from perdure.cli.blocking import block_on
from perdure.cli.database import read_database_url
from perdure.cli.errors import CommandFailed
from perdure.cli.output import Cell, print_json, print_table
from perdure.plan.world import Outcome

if TYPE_CHECKING:
    from perdure.ledger.history import HistoryQuery, HistoryRow

_KINDS = {
    alias: kind for kind in Kind for alias in (kind.short, kind.plural, kind.value.lower(), f"{kind.value.lower()}s")
}
_OUTCOME_STYLES = {Outcome.SUCCESS: "green", Outcome.FAILURE: "red", Outcome.SUPERSEDED: "dim"}


def _target(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[Kind, str]:
    """`br/ada`, `botruntime/ada`, `BotRuntime/ada`, or as `kubectl -o name` prints it: `botruntime.perdure.dev/ada`."""
    kind, _slash, name = value.partition("/")
    known = _KINDS.get(kind.lower().removesuffix(f".{names.GROUP}"))
    if known is None or not name:
        raise click.BadParameter(f"{value!r} is not KIND/NAME such as br/ada or gameruntime/castle")
    return known, name


@click.command(short_help="Show what was done to a runtime.")
@click.argument("target", metavar="KIND/NAME", callback=_target)
@options.option("-n", "--namespace", default="default", help="Of the runtime.")
@options.option("--limit", type=click.IntRange(1, 100_000), default=50, help="Most operations to show.")
@options.database
@options.state_dir
@options.output
def history(target: tuple[Kind, str], namespace: str, limit: int, output: str, **given: Any) -> None:
    """Show what was done to a runtime, newest first: when, for which life of the name (uid), what, who wanted it, and
    how it ended. Also for objects that are gone.

    Without a database URL the PostgreSQL of a `perdure standalone` on this machine is read.
    """
    from perdure.ledger.history import HistoryQuery

    kind, name = target
    query = HistoryQuery(kind=kind, namespace=namespace, name=name, limit=limit)
    rows = _read(_ledger(given), query)
    if output == "json":
        import msgspec

        print_json(msgspec.to_builtins(rows))
    elif rows:
        _print(rows, wide=output == "wide")
    else:
        click.echo(f"Nothing was ever done to {kind} {namespace}/{name}; is the namespace right (-n)?", err=True)


def _ledger(given: dict[str, Any]) -> str:
    """The ledger's connection string. Raises `CommandFailed`, `UsageError`."""
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


def _read(url: str, query: HistoryQuery) -> list[HistoryRow]:
    from perdure.ledger.history import read_history
    from perdure.reconcile.ports.errors import LedgerUnavailable
    from perdure.telemetry import logs

    # The pool warns of each failed attempt; here the last word is enough.
    logs.configure(logs.LogLevel.ERROR)
    try:
        return block_on(read_history(url, query))
    except LedgerUnavailable as error:
        raise CommandFailed(logs.redact(str(error))) from error


def _print(rows: Sequence[HistoryRow], *, wide: bool) -> None:
    columns = ["TIME", "UID", "OP", "SOURCE", "OUTCOME", "CODE", "DURATION"]
    if wide:
        columns += ["NODE", "PHASES", "IMAGE", "SNAPSHOT"]
    print_table([*columns, "MESSAGE"], [_cells(row, wide=wide) for row in rows])


def _cells(row: HistoryRow, *, wide: bool) -> list[Cell]:
    at = row.started_at or row.finished_at
    cells = [
        Cell(at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ") if at else "-"),
        Cell(row.uid[:8], "cyan"),
        Cell(row.op or "?"),
        Cell(row.source or "?", "dim"),
        _outcome(row),
        Cell(row.error_code or "-"),
        Cell(duration(row.finished_at - row.started_at) if row.finished_at and row.started_at else "-"),
    ]
    if wide:
        phases = f"{row.before or '-'} → {row.after or '-'}"
        cells += [Cell(row.node_name), Cell(phases), Cell(row.image or "-"), Cell(row.snapshot_key or "-")]
    return [*cells, Cell(row.message or "")]


def _outcome(row: HistoryRow) -> Cell:
    if row.outcome is None:
        return Cell("under way", "yellow")
    return Cell(row.outcome, _OUTCOME_STYLES.get(Outcome(row.outcome), ""))


def duration(span: timedelta) -> str:
    """As a person says it: `83ms`, `1.2s`, `2m05s`, `3h20m`."""
    seconds = max(0.0, span.total_seconds())
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    return f"{minutes // 60}h{minutes % 60:02}m"
