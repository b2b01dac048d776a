"""`perdure standalone`, `controller` and `agent`: options become settings, logging is set up, the process is run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from perdure.cli import options
from perdure.cli.database import read_database_url, require_database_url

if TYPE_CHECKING:
    from perdure.cli.settings import (
        AgentSettings,
        CommonSettings,
        ControllerSettings,
        NodeSettings,
        StandaloneSettings,
    )

Settings = TypeVar("Settings", "ControllerSettings", "AgentSettings", "StandaloneSettings")


@click.command(short_help="Run the controller.")
@options.common
@options.controller
def controller(**given: Any) -> None:
    """Run the controller: it puts the finalizer on, binds each runtime to a node, and publishes what the ledger knows.

    One per cluster is active. It touches no container and no data.
    """
    from perdure.cli import controller as composition
    from perdure.cli.settings import ControllerSettings

    url = require_database_url(given)
    settings = ControllerSettings(
        common=_common(given), database_url=url, port_range=given["port_range"], history_days=given["history_days"]
    )
    _run(composition.run, settings)


@click.command(short_help="Run the agent.")
@options.common
@options.node
def agent(**given: Any) -> None:
    """Run the agent: everything about containers, data and archives of the runtimes that are bound to this node.

    One per node. Ending it, however it is ended, stops no runtime.
    """
    from perdure.cli import agent as composition
    from perdure.cli.settings import AgentSettings

    url = require_database_url(given)
    _run(composition.run, AgentSettings(common=_common(given), database_url=url, node=_node(given)))


@click.command(short_help="Run controller and agent in one.")
@options.common
@options.controller
@options.node
def standalone(**given: Any) -> None:
    """Run controller and agent in one process, for one machine.

    Without a database URL it runs a PostgreSQL of its own in the state folder: good for trying Perdure out.
    """
    from perdure.cli import standalone as composition
    from perdure.cli.settings import StandaloneSettings

    url = read_database_url(given)
    settings = StandaloneSettings(
        common=_common(given),
        database_url=url,
        node=_node(given),
        port_range=given["port_range"],
        history_days=given["history_days"],
    )
    _run(composition.run, settings)


os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
"""Read when grpc is imported: its fork handlers, which we have no use for, complain on stderr at each child process."""


def _run(run: Callable[[Settings], None], settings: Settings) -> None:
    """From here on it is a process with a log: an unexpected error ends it with its traceback, not with one line."""
    from perdure.cli.errors import CommandFailed
    from perdure.cli.settings import ControllerSettings
    from perdure.kube.access import NoCluster
    from perdure.kube.heartbeat import NodeNameTaken
    from perdure.kube.lease import LeadershipLost
    from perdure.reconcile.ports.errors import PortError
    from perdure.telemetry import logs
    from perdure.telemetry.health import AddressInUse

    sys.excepthook = sys.__excepthook__
    node = None if isinstance(settings, ControllerSettings) else settings.node.name
    logs.configure(settings.common.log_level, settings.common.log_format, node=node)
    try:
        run(settings)
    except (PortError, NoCluster, AddressInUse, LeadershipLost, NodeNameTaken) as error:
        raise CommandFailed(logs.redact(str(error)), "runtimes that run go on running meanwhile") from error


def _common(given: dict[str, Any]) -> CommonSettings:
    from perdure.cli.settings import CommonSettings
    from perdure.telemetry.health import Address, InvalidAddress
    from perdure.telemetry.logs import LogFormat, LogLevel

    try:
        address = Address.parse(given["http_address"])
    except InvalidAddress as error:
        raise click.BadParameter(str(error), param_hint="--http-address") from error
    return CommonSettings(
        kubeconfig=given["kubeconfig"],
        http_address=address,
        resync_seconds=given["resync_seconds"],
        log_level=LogLevel(given["log_level"]),
        log_format=LogFormat(given["log_format"]),
    )


def _node(given: dict[str, Any]) -> NodeSettings:
    from perdure.api.names import NodeName
    from perdure.cli.settings import NodeSettings

    state: Path = given["state_dir"]
    cpu: int | None = given["allocatable_cpu"]
    memory: int | None = given["allocatable_memory"]
    return NodeSettings(
        name=NodeName(given["node_name"]),
        containerd_address=given["containerd_address"],
        engine_namespace=given["engine_namespace"],
        runc_root=given["runc_root"],
        cgroup_parent=given["cgroup_parent"],
        state_dir=state,
        run_dir=given["run_dir"],
        archive_dir=given["archive_dir"] or state / "archives",
        cni_conf_dir=given["cni_conf_dir"],
        cni_network=given["cni_network"],
        cni_bin_dirs=given["cni_bin_dirs"],
        allocatable_millicores=options.machine_millicores() if cpu is None else cpu,
        allocatable_bytes=options.machine_bytes() if memory is None else memory,
        max_concurrent_starts=given["max_concurrent_starts"] or 2 * options.machine_cores(),
    )
