"""`perdure archive`: the archives of a cluster. `ls` reads the catalogue; `reindex` asks nodes to enter what their stores
hold into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perdure.api.names import Kind
from perdure.api.request import Verb
from perdure.cli import options
from perdure.cli.asking import ask_nodes, show_answers
from perdure.cli.blocking import block_on
from perdure.cli.database import ask_ledger, find_ledger, require_known
from perdure.cli.output import Cell, print_json, print_table, size
from perdure.cli.target import parse_target

if TYPE_CHECKING:
    from perdure.ledger.listing import ListedArchive

_STATE_STYLES = {"verified": "green", "quarantined": "red", "purging": "yellow", "purged": "dim"}


@click.group(short_help="Look after archives.")
def archive() -> None:
    """Look after the archives of runtimes' data."""


@archive.command(name="ls", short_help="List archives.")
@click.argument("target", metavar="[KIND/NAME]", required=False, callback=parse_target)
@options.namespace
@options.all_namespaces
@options.option("--limit", type=click.IntRange(1, 100_000), default=100, help="Most archives to show.")
@options.database
@options.state_dir
@options.output
def list_archives(
    target: tuple[Kind, str] | None, namespace: str, all_namespaces: bool, limit: int, output: str, **given: Any
) -> None:
    """List archives as the ledger's catalogue has them, newest first: also what is in quarantine or purged, and what no
    RuntimeArchive stands for any more.

    Exit code 1 if the ledger never heard of KIND/NAME.

    \b
    Examples:
      perdure archive ls br/ada
      perdure archive ls -A -o json | jq '.[] | select(.state == "quarantined")'
    """
    from perdure.ledger.listing import read_archives

    url = find_ledger(given)
    within = None if all_namespaces else namespace
    found = ask_ledger(read_archives(url, target, within, limit))
    if not found and target is not None:
        require_known(url, target, within)
    if output == "json":
        import msgspec

        print_json(msgspec.to_builtins(found))
    elif found:
        _print_archives(found, wide=output == "wide")
    if not found:
        where = f"in the namespace {within}" if within is not None else "in any namespace"
        click.echo(f"No archive of {'/'.join(target) if target else 'anything'} {where} is known.", err=True)


def _print_archives(found: Sequence[ListedArchive], *, wide: bool) -> None:
    columns = ["SEQUENCE", "NAMESPACE", "RUNTIME", "UID", "STATE", "SIZE", "NODE", "VERIFIED"]
    rows = []
    for it in found:
        row = [
            Cell(str(it.sequence)),
            Cell(it.namespace),
            Cell(f"{it.kind.short}/{it.name}"),
            Cell(it.uid, "cyan"),
            Cell(it.state, _STATE_STYLES.get(it.state, "")),
            Cell("empty" if it.empty else size(it.bytes)),
            Cell(it.node or "any"),
            Cell(f"{it.verified_at:%Y-%m-%d %H:%M:%SZ}" if it.verified_at is not None else "-"),
        ]
        if wide:
            row += [Cell(it.store or "-"), Cell(it.image), Cell(it.sha256 or "-"), Cell(it.why or "-")]
        rows.append(row)
    print_table(columns + (["STORE", "IMAGE", "SHA256", "WHY"] if wide else []), rows)


@archive.command(short_help="Enter what the stores hold into the ledger again.")
@click.argument("nodes", metavar="[NODE]...", nargs=-1)
@options.option("--timeout", type=click.FloatRange(1, 86_400), default=3600.0, help="Seconds to wait for the answers.")
@options.cluster
@options.output
def reindex(nodes: tuple[str, ...], timeout: float, kubeconfig: Path | None, output: str) -> None:
    """Have nodes (all, if none is named) look through their stores, read each archive that the ledger does not know, and
    enter it if it is what its manifest says. For a ledger that was restored from a backup.

    Nothing is removed. What was purged stays purged, what is in quarantine stays there, and what does not fit (another
    cluster's, links, damage, a manifest that names another place) is named and left alone. It may be repeated.

    \b
    Examples:
      perdure archive reindex
      perdure archive reindex node-3 -o json
    """
    show_answers(block_on(ask_nodes(kubeconfig, Verb.REINDEX, nodes, timeout)), output)
