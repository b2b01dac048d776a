"""`perdure history [KIND/NAME]`: what was done to runtimes, from the ledger. It outlives the object, and so does this."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from perdure.api.names import Kind
from perdure.cli import options
from perdure.cli.database import ask_ledger, find_ledger, require_known
from perdure.cli.moments import EXAMPLES, moment
from perdure.cli.operations_view import UNDER_WAY, OperationsView
from perdure.cli.target import parse_target

if TYPE_CHECKING:
    from perdure.ledger.history import HistoryQuery, HistoryRow

# The words of `perdure.plan.world`, which takes longer to import than --help may take; a test holds them together.
OPS = (
    "start",
    "stop",
    "restart",
    "cleanup_container",
    "restore",
    "preserve",
    "purge",
    "adopt",
    "dispose",
    "force_release",
)
"""The last one is the controller's, where no agent does anything."""
OUTCOMES = ("success", "failure", "superseded", UNDER_WAY)
SOURCES = ("kubectl", "auto_reconcile", "node_event", "auto_ttl", "admin_cli")
POLL_SECONDS = 1.0

_CORRELATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UID = re.compile(r"[A-Za-z0-9-]{1,64}")


def _uid(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if value and not _UID.fullmatch(value):
        raise click.BadParameter(f"{value!r} is not (the beginning of) a uid, as the column UID shows it")
    return value


def _correlation(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _CORRELATION.fullmatch(value):
        raise click.BadParameter(f"{value!r} is no id of a cause; `perdure history -o wide` shows them")
    return value


def _choices(flag: str, values: Sequence[str], meaning: str) -> options.Decorator[Any]:
    return options.option(flag, f"{flag[2:]}s", type=click.Choice(values), multiple=True, help=meaning)


def _moment(flag: str, meaning: str) -> options.Decorator[Any]:
    return options.option(flag, callback=moment, metavar="TIME", help=meaning)


@click.command(short_help="Show what was done to runtimes.")
@click.argument("target", metavar="[KIND/NAME]", required=False, callback=parse_target)
@options.namespace
@options.all_namespaces
@_choices("--op", OPS, "Only these operations; may be repeated.")
@_choices("--outcome", OUTCOMES, "Only what ended so; may be repeated.")
@_choices("--source", SOURCES, "Only what these wanted; may be repeated.")
@options.option(
    "--uid", default="", callback=_uid, metavar="UID", help="Only this life of a name; its beginning will do."
)
@options.option(
    "--correlation",
    callback=_correlation,
    metavar="ID",
    help="Only what one cause brought about: an edit, a request, a deletion; the column CORRELATION of -o wide.",
)
@_moment("--since", f"Only what was begun then or later: {EXAMPLES}.")
@_moment("--until", "Only what was begun before.")
@options.option("--limit", type=click.IntRange(1, 100_000), default=50, help="Most operations to show.")
@options.option("-f", "--follow", is_flag=True, help="Oldest first, and go on with what comes, until interrupted.")
@options.option(
    "--health",
    is_flag=True,
    help="What happened to containers by itself, instead of what was done. Not with --follow, --op, --outcome, --source "
    "and --correlation.",
)
@options.database
@options.state_dir
@options.output
def history(target: tuple[Kind, str] | None, output: str, follow: bool, health: bool, **given: Any) -> None:
    """Show what was done to a runtime, or to all of a namespace, newest first: when, for which life of the name (uid),
    what, who wanted it, and how it ended. Also for objects that are gone.

    \b
    Examples:
      perdure history br/ada                            one runtime, all lives that its name had
      perdure history br/ada --uid 6c0d2a54 -o wide     one of these lives, with nodes and images
      perdure history -A --outcome failure --since 24h  what failed anywhere since this time yesterday
      perdure history -n shop --op purge --op preserve  whose data was removed or archived
      perdure history -A --correlation 7f3a91c0 -o wide what one request or edit brought about
      perdure history gr/castle -f                      go on as things happen
      perdure history br/ada -f -o json | jq -r .op     one line of JSON for each
      perdure history br/ada --health                   crashes, memory kills, probes that failed

    Without a database URL the PostgreSQL of a `perdure standalone` on this machine is read. Exit code 1 if the ledger
    never heard of KIND/NAME.
    """
    query = _query(target, given, follow=follow)
    url = find_ledger(given)
    if health:
        _health(url, query, target, output, follow=follow)
        return
    view = OperationsView(output, names=query.name is None, namespaces=query.namespace is None)
    if follow:
        ask_ledger(_follow(url, query, view))
        return
    rows = ask_ledger(_read(url, query))
    if not rows and target is not None:
        require_known(url, target, query.namespace)
    view.all(rows)
    if not rows:
        click.echo(f"Nothing in the history of {query} matches.", err=True)


def _health(url: str, query: HistoryQuery, target: tuple[Kind, str] | None, output: str, *, follow: bool) -> None:
    """Raises `UsageError` for what is said of operations alone."""
    from perdure.cli.health_view import print_health
    from perdure.ledger.health_history import read_health

    if follow or query.ops or query.outcomes or query.sources or query.correlation is not None:
        raise click.UsageError(
            "--health does not go with --follow, --op, --outcome, --source and --correlation: these are of operations."
        )
    rows = ask_ledger(read_health(url, query))
    if not rows and target is not None:
        require_known(url, target, query.namespace)
    print_health(rows, output, names=query.name is None, namespaces=query.namespace is None)
    if not rows:
        click.echo(f"Nothing in the health history of {query} matches.", err=True)


def _query(target: tuple[Kind, str] | None, given: dict[str, Any], *, follow: bool) -> HistoryQuery:
    """Raises `UsageError` for what excludes itself."""
    from perdure.ledger.history import HistoryQuery

    since, until = given["since"], given["until"]
    if since is not None and until is not None and until <= since:
        raise click.UsageError(
            f"--until ({until:%FT%TZ}) is not after --since ({since:%FT%TZ}): nothing is in between."
        )
    if follow and until is not None:
        raise click.UsageError("--follow shows what comes, --until only what was: choose one.")
    kind, name = target or (None, None)
    return HistoryQuery(
        kind=kind,
        namespace=None if given["all_namespaces"] else given["namespace"],
        name=name,
        limit=given["limit"],
        uid=given["uid"],
        ops=given["ops"],
        outcomes=given["outcomes"],
        sources=given["sources"],
        correlation=given["correlation"],
        since=since,
        until=until,
    )


async def _read(url: str, query: HistoryQuery) -> list[HistoryRow]:
    from perdure.ledger.history import read_history

    return await read_history(url, query)


async def _follow(url: str, query: HistoryQuery, view: OperationsView) -> None:
    """Until interrupted, or until nobody reads what is printed. A ledger that goes away meanwhile is waited for."""
    import asyncio

    from perdure.ledger.database import Database
    from perdure.ledger.following import Follower
    from perdure.ledger.history import READER
    from perdure.reconcile.ports.errors import LedgerUnavailable
    from perdure.telemetry.logs import redact

    async with Database(url, READER) as database:
        follower = Follower(database, query)
        view.more(await follower.first())
        away = False
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                view.more(await follower.news())
                away = False
            except LedgerUnavailable as error:
                if not away:
                    click.echo(f"{redact(str(error))}; waiting for it", err=True)
                away = True
