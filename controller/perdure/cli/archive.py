"""`perdure archive`: the archives of a cluster. `ls` reads the catalogue; `reindex` asks nodes to enter what their stores
hold into it.

The request is an annotation of the RuntimeNode, written with the rights of whoever calls; the node's agent answers in
`status.lastRequest`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perdure.api import names
from perdure.api.names import Kind
from perdure.api.request import UNDER_WAY, RequestId, Verb, write_request
from perdure.cli import options
from perdure.cli.blocking import block_on
from perdure.cli.database import ask_ledger, find_ledger, require_known
from perdure.cli.errors import CommandFailed
from perdure.cli.output import Cell, print_json, print_table, size
from perdure.cli.target import parse_target

if TYPE_CHECKING:
    from perdure.api.node import RuntimeNode
    from perdure.api.runtime import RequestStatus
    from perdure.kube.client import ApiClient
    from perdure.ledger.listing import ListedArchive

LOOK_SECONDS = 1.0
_ID_BYTES = 8
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
    asking = _Asking(RequestId(secrets.token_hex(_ID_BYTES)), time.monotonic() + timeout)
    answers = block_on(asking.ask(kubeconfig, nodes))
    if output == "json":
        import msgspec

        print_json({name: msgspec.to_builtins(answer) for name, answer in answers.items()})
    else:
        rows = [[Cell(name), Cell(answer.outcome), Cell(answer.message)] for name, answer in answers.items()]
        print_table(["NODE", "OUTCOME", "MESSAGE"], rows)
    failed = [name for name, answer in answers.items() if answer.outcome != "success"]
    if failed:
        raise CommandFailed(f"not done on {', '.join(failed)}", "the message says why; it may be asked for again")


class _Asking:
    """One request of some nodes, from writing it to their answers. `until`: on the monotonic clock."""

    def __init__(self, id_: RequestId, until: float) -> None:
        self._id = id_
        self._until = until

    async def ask(self, kubeconfig: Path | None, only: tuple[str, ...]) -> dict[str, RequestStatus]:
        """By node. Raises `CommandFailed`."""
        from perdure.kube.access import ClusterSource, NoCluster
        from perdure.kube.client import ApiClient, ApiRefused
        from perdure.reconcile.ports.errors import ApiUnavailable

        try:
            async with ApiClient(ClusterSource(kubeconfig)) as api:
                known = [node async for node in _nodes(api)]
                missing = set(only) - {node.name for node in known}
                if missing or not known:
                    raise CommandFailed(
                        f"there is no node {', '.join(sorted(missing))}" if missing else "there are no nodes",
                        "`perdure nodes` lists them",
                    )
                asked = [node for node in known if not only or node.name in only]
                for node in asked:
                    await self._write(api, node)
                answers = await asyncio.gather(*(self._answer(api, node) for node in asked))
                return {node.name: answer for node, answer in zip(asked, answers, strict=True)}
        except NoCluster as error:
            raise CommandFailed(f"asking nodes: {error}") from error
        except (ApiUnavailable, ApiRefused) as error:
            raise CommandFailed(str(error)) from error

    async def _write(self, api: ApiClient, node: RuntimeNode) -> None:
        from perdure.kube import paths

        value = write_request(Verb.REINDEX, self._id)
        metadata = {"uid": node.uid, "annotations": {names.ANNOTATION_REQUEST: value}}
        await api.merge_patch(paths.node(node.name), f"asking node {node.name}", {"metadata": metadata})

    async def _answer(self, api: ApiClient, node: RuntimeNode) -> RequestStatus:
        from perdure.api.node import parse_node
        from perdure.kube import paths

        while True:
            found = parse_node(await api.get(paths.node(node.name), f"reading node {node.name}"))
            last = found.status.last_request
            mine = last if last is not None and last.id == self._id else None
            if mine is not None and mine.outcome != UNDER_WAY:
                return mine
            if found.request is None or found.request.id != self._id:
                raise CommandFailed(
                    f"the request {self._id} of node {node.name} was overwritten by another one; ask again"
                )
            if time.monotonic() >= self._until:
                how_far = f" ({mine.message})" if mine is not None else ": its agent has not begun"
                raise CommandFailed(f"node {node.name} is not done yet{how_far}; the request {self._id} stays")
            await asyncio.sleep(LOOK_SECONDS)


async def _nodes(api: ApiClient) -> AsyncIterator[RuntimeNode]:
    from perdure.api.node import parse_node
    from perdure.kube import paths

    async for page in api.pages(paths.nodes(), "listing RuntimeNodes"):
        for raw in page:
            yield parse_node(raw)
