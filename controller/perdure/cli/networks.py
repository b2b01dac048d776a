"""Builds the part of a node's half that makes networks: the CNI client, the firewall, and what looks after them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from perdure.api.names import InstallationId, Uid
from perdure.cli.settings import NodeSettings
from perdure.network.attachments import Attachments
from perdure.network.cni.client import CniClient
from perdure.network.cni_sandbox import CniSandbox, CniSettings
from perdure.network.isolation import Isolation
from perdure.network.node_sandbox import NodeSandbox
from perdure.network.none import LoopbackSandbox
from perdure.network.obstacles import Obstacles
from perdure.network.upkeep import Upkeep

PLUGIN_SECONDS = 30.0
"""Deadline of one plugin; the slowest of the reference plugins takes 0.3 s on an idle machine."""


@dataclass(frozen=True, slots=True)
class Networks:
    """`upkeep` is for the caller to spawn."""

    sandbox: NodeSandbox
    upkeep: Upkeep


async def open_networks(
    installation: InstallationId, node: NodeSettings, wake: Callable[[Uid], None], known: Callable[[], frozenset[Uid]]
) -> Networks:
    """`known`: uids that may have a network here, from the journal. Raises `OSError` for an unusable run folder."""
    folder = node.run_dir / "cni"
    names = folder / "netns"
    attachments = Attachments(folder / "attached")
    await asyncio.to_thread(attachments.load)
    client = CniClient(node.cni_bin_dirs, folder, PLUGIN_SECONDS)
    isolation = Isolation(installation, attachments)
    obstacles = Obstacles(attachments, folder / "results", known)
    settings = CniSettings(node.cni_conf_dir, node.cni_network, names)
    cni = CniSandbox(settings, client, attachments, isolation, obstacles.clear)
    upkeep = Upkeep(cni, client, attachments, isolation, obstacles, names, wake)
    return Networks(NodeSandbox(LoopbackSandbox(node.run_dir), cni), upkeep)
