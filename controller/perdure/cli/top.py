"""`perdure top`: the whole ledger at a glance."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perdure.cli import options
from perdure.cli.blocking import block_on
from perdure.cli.database import ask_ledger, find_ledger
from perdure.cli.operations_view import duration
from perdure.cli.output import Cell, print_json, print_table, size

if TYPE_CHECKING:
    from perdure.cli.prospects import Prospects
    from perdure.ledger.overview import Overview


@click.command(short_help="Show everything at a glance.")
@options.database
@options.state_dir
@options.cluster
@options.output
def top(output: str, kubeconfig: Path | None, **given: Any) -> None:
    """Show runtimes by phase, what failed in the last 24 hours, what is under way for longest, what is cleaned up next, who
    waits for a person, what the stores of each node hold, and data of runtimes that were given up.

    \b
    Examples:
      perdure top
      perdure top -o json | jq '.failures[].code'
      watch -n 5 perdure top

    Most of it is what the ledger knows, which is what agents wrote to it. What is cleaned up next and who waits is read
    from the cluster, if there is one to be read. For nodes see perdure nodes. -o wide shows what -o table does.
    """
    from perdure.cli.prospects import read_prospects
    from perdure.ledger.overview import read_overview

    overview = ask_ledger(read_overview(find_ledger(given)))
    prospects = block_on(read_prospects(kubeconfig))
    if output == "json":
        import msgspec

        print_json({**msgspec.to_builtins(overview), "prospects": msgspec.to_builtins(prospects)})
        return
    _print(overview)
    _print_prospects(prospects)


def _print(overview: Overview) -> None:
    print_table(
        ["RUNTIMES", "PHASE", "COUNT"],
        [[Cell(of.kind), Cell(of.phase or "-"), Cell(str(of.count))] for of in overview.runtimes],
    )
    _under_way(overview)
    click.echo()
    print_table(
        ["FAILED IN 24 H", "COUNT", "LATEST", "RUNTIME"],
        [
            [
                Cell(failure.code or "-", "red"),
                Cell(str(failure.count)),
                Cell(f"{failure.latest_at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"),
                Cell(failure.latest),
            ]
            for failure in overview.failures
        ],
    )
    click.echo()
    print_table(
        ["ARCHIVES ON", "STATE", "COUNT", "SIZE"],
        [
            [Cell(of.node or "any node"), Cell(of.state), Cell(str(of.count)), Cell(size(of.bytes))]
            for of in overview.archives
        ],
    )
    if overview.orphans:
        click.echo()
        given_up = [[Cell(orphan.node or "-"), Cell(str(orphan.count))] for orphan in overview.orphans]
        print_table(["GIVEN UP ON", "WITH DATA"], given_up)


def _print_prospects(prospects: Prospects) -> None:
    if prospects.problem:
        click.echo(f"\nWhat is cleaned up next, and who waits, is not known: {prospects.problem}", err=True)
        return
    click.echo(f"\nTo be cleaned up when their time is over: {prospects.due_count}")
    if prospects.due:
        rows = [[Cell(f"{it.kind.short}/{it.name} -n {it.namespace}"), Cell(it.at)] for it in prospects.due]
        print_table(["NEXT CLEAN-UPS", "AT"], rows)
    click.echo(f"\nWaiting for a person: {prospects.stuck_count}")
    if prospects.stuck:
        print_table(
            ["LONGEST STUCK", "PHASE", "REASON", "SINCE"],
            [
                [
                    Cell(f"{it.kind.short}/{it.name} -n {it.namespace}"),
                    Cell(it.phase, "red"),
                    Cell(it.reason or "-"),
                    Cell(it.since or "-"),
                ]
                for it in prospects.stuck
            ],
        )


def _under_way(overview: Overview) -> None:
    oldest = overview.oldest_under_way
    click.echo(f"\nUnder way: {overview.under_way}", nl=oldest is None)
    if oldest is not None:
        since = duration(overview.at - oldest.started_at)
        runtime = f"{oldest.kind.short}/{oldest.name} -n {oldest.namespace}"
        click.echo(f"; for longest: {oldest.op or '?'} of {runtime} on {oldest.node_name or '-'}, since {since}")
        if oldest.error_code is not None:
            click.echo(f"  {oldest.error_code}: {oldest.message}")
