"""`perdure nodes`: what the agents report, and with `-o wide` each piece of data on a node that no object claims;
`accept-absence` lifts the freeze of a node whose objects are meant to be gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click
from click.core import ParameterSource

from perdure.api import names
from perdure.api.conditions import ConditionType, Truth
from perdure.api.names import NodeName
from perdure.api.request import Verb
from perdure.cli import options
from perdure.cli.asking import ask_nodes, show_answers
from perdure.cli.blocking import block_on
from perdure.cli.errors import CommandFailed
from perdure.cli.operations_view import duration
from perdure.cli.output import Cell, print_json, print_table

if TYPE_CHECKING:
    from perdure.api.node import RuntimeNode
    from perdure.kube.client import ApiClient
    from perdure.kube.heartbeat import Pulse

_Pulses: TypeAlias = "Mapping[NodeName, Pulse]"

_HINTS = {
    401: "check the credentials in the kubeconfig",
    403: f"ask for the right to list {names.NODE_PLURAL}.{names.GROUP}",
}
"""What to do about an answer of the API server."""


@click.group(short_help="Show the nodes.", invoke_without_command=True)
@options.cluster
@options.output
@click.pass_context
def nodes(ctx: click.Context, kubeconfig: Path | None, output: str) -> None:
    """Show each node: whether its agent is ready, what runs there, and how much data there has no object.

    An agent that is dead says nothing new: READY is what it last said only while its heartbeat (its Lease in the namespace
    perdure-system) goes on, and Unknown otherwise. With -o json each node has its heartbeat beside it.

    With -o wide that data (orphans) is listed. It is kept: there is no command yet to claim or purge it.
    """
    if ctx.invoked_subcommand is not None:
        if any(ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in ctx.params):
            raise click.UsageError(f"options go behind {ctx.invoked_subcommand}", ctx)
        return
    from perdure.api.node import parse_node

    raw, pulses = block_on(_look(kubeconfig))
    if output == "json":
        print_json([item | {"heartbeat": _as_json(item["metadata"]["name"], pulses)} for item in raw])
        return
    found = sorted((parse_node(item) for item in raw), key=lambda node: node.name)
    if not found:
        click.echo("No nodes: no agent has reported to this cluster yet.", err=True)
        return
    _print_nodes(found, pulses, wide=output == "wide")
    if output == "wide" and any(node.status.orphans for node in found):
        click.echo("\nOrphans: data that no object claims. It is kept; there is no command yet to claim or purge it.")
        _print_orphans(found)


@nodes.command(name="accept-absence", short_help="Lift the freeze of a node whose objects are meant to be gone.")
@click.argument("node")
@options.option("--timeout", type=click.FloatRange(1, 86_400), default=600.0, help="Seconds to wait for the answer.")
@options.cluster
@options.output
def accept_absence(node: str, timeout: float, kubeconfig: Path | None, output: str) -> None:
    """Accept that objects of a node's runtimes are gone for good, for a node with the remark Trusted=False/MassAbsence.

    Many objects that are gone without a deletion look like an accident: the node removes nothing more until they are back.
    If they are meant to be gone (they were applied anew, or their finalizers were taken off), this says so, for what is
    absent now and for nothing later. Deletions and clean-ups on the node go on. Nothing is removed by it: containers without
    an object keep running and data without one is kept, both listed by `perdure nodes -o wide`.

    \b
    Examples:
      perdure nodes accept-absence node-3
    """
    show_answers(block_on(ask_nodes(kubeconfig, Verb.ACCEPT_ABSENCE, (node,), timeout)), output)


async def _look(kubeconfig: Path | None) -> tuple[list[dict[str, Any]], _Pulses | None]:
    """All RuntimeNodes as the API server has them, and the heartbeats that may be read. Raises `CommandFailed`."""
    from perdure.kube import paths
    from perdure.kube.access import ClusterSource, NoCluster
    from perdure.kube.client import ApiClient, ApiRefused
    from perdure.reconcile.ports.errors import ApiUnavailable

    what = "listing RuntimeNodes"
    try:
        async with ApiClient(ClusterSource(kubeconfig)) as api:
            raw = [item async for page in api.pages(paths.nodes(), what) for item in page]
            return raw, await _read_pulses(api) if raw else {}
    except NoCluster as error:
        raise CommandFailed(f"{what}: {error}") from error
    except ApiUnavailable as error:
        refused = error.__cause__
        hint = _HINTS.get(refused.code, "") if isinstance(refused, ApiRefused) else ""
        raise CommandFailed(str(error), hint) from error


async def _read_pulses(api: ApiClient) -> _Pulses | None:
    """None, and said so, where they may not be read: what agents reported is worth showing without them."""
    from perdure.kube.client import ApiRefused
    from perdure.kube.heartbeat import read_pulses
    from perdure.reconcile.ports.errors import ApiUnavailable

    try:
        return await read_pulses(api)
    except ApiUnavailable as error:
        refused = error.__cause__
        if not (isinstance(refused, ApiRefused) and refused.code == 403):
            raise
        right = f"ask for the right to list leases in the namespace {names.LEASE_NAMESPACE}"
        click.echo(f"Whether agents are alive is not known: {refused.text}; {right}.", err=True)
        return None


def _print_nodes(found: Sequence[RuntimeNode], pulses: _Pulses | None, *, wide: bool) -> None:
    columns = ["NAME", "READY", "ENGINE", "RUNTIMES", "ORPHANS"]
    if wide:
        columns += ["CPU", "MEMORY", "NODE-ID"]
    rows = []
    for node in found:
        status = node.status
        orphans = len(status.orphans)
        row = [
            Cell(node.name),
            _ready(node, pulses),
            Cell(f"{status.engine} {status.engine_version}".strip() or "-"),
            Cell(str(status.runtimes)),
            Cell(str(orphans), "yellow" if orphans else ""),
        ]
        if wide:
            row += [
                Cell(str(status.allocatable.cpu)),
                Cell(str(status.allocatable.memory)),
                Cell(status.node_id or "-"),
            ]
        rows.append([*row, Cell(_remarks(node))])
    print_table([*columns, "REMARKS"], rows)


def _ready(node: RuntimeNode, pulses: _Pulses | None) -> Cell:
    """What the agent says, as long as it lives to say so."""
    if pulses is None:
        return Cell(f"{Truth.UNKNOWN} (heartbeat not readable)", "yellow")
    pulse = pulses.get(node.name)
    if pulse is None:
        return Cell(f"{Truth.UNKNOWN} (no heartbeat)", "yellow")
    if pulse.silent_seconds is None:
        return Cell(f"{Truth.UNKNOWN} (heartbeat without a date)", "yellow")
    if not pulse.alive:
        silent = duration(timedelta(seconds=round(pulse.silent_seconds)))
        return Cell(f"{Truth.UNKNOWN} (no heartbeat for {silent})", "yellow")
    said = next((it.status for it in node.status.conditions if it.type == ConditionType.READY), Truth.UNKNOWN.value)
    return Cell(said, {Truth.TRUE: "green", Truth.FALSE: "red"}.get(Truth(said), "yellow"))


def _as_json(name: str, pulses: _Pulses | None) -> dict[str, Any] | None:
    """None: it could not be read."""
    if pulses is None:
        return None
    pulse = pulses.get(NodeName(name))
    return {"alive": pulse is not None and pulse.alive, "silentSeconds": pulse.silent_seconds if pulse else None}


def _remarks(node: RuntimeNode) -> str:
    """What a person has to know: cordoned, out of service, and each condition that is not True, as all should be."""
    remarks = []
    if node.spec.unschedulable:
        remarks.append("cordoned")
    if node.out_of_service:
        remarks.append("out of service")
    for condition in node.status.conditions:
        if condition.status != Truth.TRUE:
            remarks.append(f"{condition.type}={condition.status}/{condition.reason}: {condition.message}".rstrip(": "))
    return "; ".join(remarks)


def _print_orphans(found: Sequence[RuntimeNode]) -> None:
    print_table(
        ["NODE", "RUNTIME", "UID", "SNAPSHOT", "RUNNING"],
        [
            [
                Cell(node.name),
                Cell(f"{orphan.kind}/{orphan.namespace}/{orphan.name}"),
                Cell(orphan.uid),
                Cell(orphan.snapshot_key),
                Cell("yes", "green") if orphan.running else Cell("no"),
            ]
            for node in found
            for orphan in node.status.orphans
        ],
    )
