"""`perdure nodes`: what the agents report, and with `-o wide` each piece of data on a node that no object claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from perdure.api import names
from perdure.api.conditions import ConditionType, Truth
from perdure.cli import options
from perdure.cli.errors import CommandFailed
from perdure.cli.output import Cell, print_json, print_table

if TYPE_CHECKING:
    from perdure.api.node import RuntimeNode
    from perdure.api.runtime import Condition

_DEADLINE_SECONDS = 15


@click.command(short_help="Show the nodes.")
@options.cluster
@options.output
def nodes(kubeconfig: str | None, output: str) -> None:
    """Show each node: whether its agent is ready, what runs there, and how much data there has no object.

    With -o wide that data (orphans) is listed: it is kept until somebody claims or purges it.
    """
    from perdure.api.node import parse_node

    raw = _list_nodes(kubeconfig)
    if output == "json":
        print_json(raw)
        return
    found = sorted((parse_node(item) for item in raw), key=lambda node: node.name)
    if not found:
        click.echo("No nodes: no agent has reported to this cluster yet.", err=True)
        return
    _print_nodes(found, wide=output == "wide")
    if output == "wide" and any(node.status.orphans for node in found):
        click.echo("\nOrphans: data that no object claims. It is kept.")
        _print_orphans(found)


def _list_nodes(kubeconfig: str | None) -> list[dict[str, Any]]:
    """All RuntimeNodes as the API server has them. Raises `CommandFailed`."""
    from kubernetes import client, config
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    what = "listing RuntimeNodes"
    settings = client.Configuration()
    try:
        config.load_config(config_file=kubeconfig, client_configuration=settings)
    except (config.ConfigException, OSError) as error:
        raise CommandFailed(
            what, why=f"there is no usable kubeconfig ({error})", hint="set KUBECONFIG or --kubeconfig"
        ) from error
    settings.retries = False
    with client.ApiClient(settings) as api:
        try:
            answer = client.CustomObjectsApi(api).list_cluster_custom_object(
                names.GROUP, names.VERSION, names.NODE_PLURAL, _request_timeout=_DEADLINE_SECONDS
            )
        except ApiException as error:
            raise CommandFailed(what, why=f"{error.status} {error.reason}", hint=_hint(error.status)) from error
        except HTTPError as error:
            raise CommandFailed(
                what,
                why=f"the API server at {settings.host} does not answer ({error})",
                hint="check the kubeconfig and the network",
            ) from error
    items: list[dict[str, Any]] = answer["items"]
    return items


def _hint(status: int) -> str:
    match status:
        case 401:
            return "the API server does not know these credentials: check the kubeconfig"
        case 403:
            return f"ask for the right to list {names.NODE_PLURAL}.{names.GROUP}"
        case 404:
            return "the resource kinds are not installed: kubectl apply -f crds/"
        case _:
            return "try it again"


def _print_nodes(found: Sequence[RuntimeNode], *, wide: bool) -> None:
    columns = ["NAME", "READY", "ENGINE", "RUNTIMES", "ORPHANS"]
    if wide:
        columns += ["CPU", "MEMORY", "NODE-ID"]
    rows = []
    for node in found:
        status = node.status
        orphans = len(status.orphans)
        row = [
            Cell(node.name),
            _ready(node),
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


def _condition(node: RuntimeNode, kind: ConditionType) -> Condition | None:
    return next((condition for condition in node.status.conditions if condition.type == kind), None)


def _ready(node: RuntimeNode) -> Cell:
    condition = _condition(node, ConditionType.READY)
    if condition is None:
        return Cell(Truth.UNKNOWN.value, "yellow")
    return Cell(condition.status, {Truth.TRUE: "green", Truth.FALSE: "red"}.get(Truth(condition.status), "yellow"))


def _remarks(node: RuntimeNode) -> str:
    """What a person has to know: cordoned, out of service, and each condition that is not as it should be."""
    remarks = []
    if node.spec.unschedulable:
        remarks.append("cordoned")
    if node.out_of_service:
        remarks.append("out of service")
    for condition in node.status.conditions:
        good = Truth.FALSE if condition.type == ConditionType.DEGRADED else Truth.TRUE
        if condition.status != good:
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
