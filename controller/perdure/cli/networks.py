"""Builds the part of a node's half that makes networks: the CNI client, the firewall, and what looks after them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perdure.api.names import InstallationId, Uid
from perdure.cli.settings import NodeSettings
from perdure.engine.oci.node import detect
from perdure.network.attachments import Attachments
from perdure.network.claims import Claims
from perdure.network.cni.cache import Cache
from perdure.network.cni.client import CniClient
from perdure.network.cni_sandbox import CniSandbox, CniSettings
from perdure.network.container_ids import ContainerIds
from perdure.network.isolation import Isolation, resolver_is_here, resolvers_in_metadata
from perdure.network.node_sandbox import NodeSandbox
from perdure.network.none import LoopbackSandbox
from perdure.network.obstacles import PATIENCE_SECONDS, Obstacles
from perdure.network.recall import recall
from perdure.network.rules import RESOLVER, owner_of
from perdure.network.upkeep import Upkeep

ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
"""A plugin of a killed agent must not go on adding what the next agent is taking away."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited for what may never come. Tests of plugins that hang have less of it."""

    plugin_seconds: float = 30.0
    """Deadline of one plugin; the slowest of the reference plugins takes 0.3 s on an idle machine."""
    leftover_seconds: float = PATIENCE_SECONDS


@dataclass(frozen=True, slots=True)
class Networks:
    """`upkeep` is for the caller to spawn."""

    sandbox: NodeSandbox
    upkeep: Upkeep


async def open_networks(
    installation: InstallationId,
    node: NodeSettings,
    wake: Callable[[Uid], None],
    known: Callable[[], frozenset[Uid]],
    patience: Patience = Patience(),
) -> Networks:
    """`known`: uids that may have a network here, from the journal. Raises `OSError` for an unusable run folder."""
    folder = node.run_dir / "cni"
    names = folder / "netns"
    attachments = Attachments(folder / "attached")
    owner = owner_of(installation, node.name)
    ids = ContainerIds.of(owner)
    cache, claims = Cache(folder), Claims(ids)
    await asyncio.to_thread(recall, attachments, cache, claims)
    client = CniClient(node.cni_bin_dirs, folder, patience.plugin_seconds, ENDS_WITH_US)
    told = (await asyncio.to_thread(detect)).resolv_conf
    resolv_conf = await asyncio.to_thread(_text_of, told)
    open_ports = RESOLVER if resolver_is_here(resolv_conf) else frozenset()
    isolation = Isolation(owner, attachments, open_ports, resolvers=resolvers_in_metadata(resolv_conf))
    obstacles = Obstacles(attachments, cache, ids, known, patience.leftover_seconds)
    settings = CniSettings(node.cni_conf_dir, node.cni_network, names, ids)
    cni = CniSandbox(settings, client, attachments, claims, isolation, obstacles.clear)
    upkeep = Upkeep(cni, client, attachments, isolation, obstacles, names, wake, known)
    return Networks(NodeSandbox(LoopbackSandbox(node.run_dir), cni), upkeep)


def _text_of(resolv_conf: Path) -> str:
    try:
        return resolv_conf.read_text()
    except FileNotFoundError:
        return ""
