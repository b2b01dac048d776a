"""What stands in the way of networks and concerns the node as a whole: addresses, rules and links that nobody has any more,
a bridge with a MAC that is none. Called by `cni_sandbox` between two tries, and by `upkeep` from time to time."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from perdure.api.conditions import Reason
from perdure.api.names import Uid
from perdure.network import bridge
from perdure.network.attachments import Attachments
from perdure.network.bridged import Bridged, bridged
from perdure.network.cni.cache import Cache
from perdure.network.cni.configuration import Network
from perdure.network.cni.error_classes import Action
from perdure.network.container_ids import ContainerIds
from perdure.network.sweeps import Known, Places, Sweeper
from perdure.reconcile.ports.errors import SandboxFailed

PATIENCE_SECONDS = 60.0
"""Between the first sighting of a leftover and its removal. Whatever is being attached is on record before it begins."""

log = structlog.get_logger(__name__)


class Obstacles:
    """One per agent. `known`: whoever may have something here, from the journal; `cache`: the client's records;
    `patience`: seconds between the first sighting of a leftover and its removal."""

    def __init__(
        self,
        attachments: Attachments,
        cache: Cache,
        ids: ContainerIds,
        known: Callable[[], frozenset[Uid]],
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._attachments = attachments
        self._cache = cache
        self._ids = ids
        self._known = known
        self._patience = patience
        self._sweeper: tuple[Bridged, Sweeper] | None = None

    async def clear(self, action: Action, network: Network) -> None:
        """Do what the table of errors asks for. Raises `SandboxFailed`."""
        match action:
            case Action.SWEEP_THEN_BACK_OFF:
                await self.sweep(network)
            case Action.REPAIR_BRIDGE:
                there = bridge_of(network)
                found = await bridge.look(there.bridge) if there is not None else None
                if found is not None:
                    await bridge.repair_mac(found)

    async def sweep(self, network: Network) -> None:
        """Remove what is left of runtimes that are no more; a network without a bridge of ours sweeps for itself."""
        there = bridge_of(network)
        if there is None:
            return
        if self._sweeper is None or self._sweeper[0] != there:
            places = Places(there.network, there.bridge, there.subnets, there.addresses, self._cache, self._ids)
            self._sweeper = (there, Sweeper(places, self._who_is_known, patience=self._patience))
        swept = await self._sweeper[1].sweep()
        if swept.failures or swept.left_alone:
            log.warning(
                "leftovers_stay",
                network=network.name,
                failures=swept.failures,
                left_alone=[f"{one.kind} {one.what}" for one in swept.left_alone],
            )

    def _who_is_known(self) -> Known:
        attached = self._attachments.all()
        return Known(
            containers=frozenset(map(self._ids.id, self._known() | self._attachments.uids())),
            addresses=frozenset(address for one in attached for address in one.addresses),
            ports=frozenset(one.port for one in attached if one.port),
        )


def bridge_of(network: Network) -> Bridged | None:
    """What is known of its bridge; None for a network without one. Raises `SandboxFailed`."""
    try:
        return bridged(network)
    except ValueError as error:
        raise SandboxFailed(
            f"network {network.name} cannot be looked after: {error}; correct its configuration",
            reason=Reason.CNI_CONFIGURATION_INVALID,
            of_node=True,
        ) from error
