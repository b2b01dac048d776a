"""Who gives a runtime its network namespace, its addresses and its ports on the node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from perdure.api.names import RuntimeRef, Uid
from perdure.api.runtime import RuntimeSpec
from perdure.plan.certainty import Certain
from perdure.plan.world import HostPort, SandboxFacts
from perdure.reconcile.ports.errors import SandboxFailed


@dataclass(frozen=True, slots=True)
class SandboxPlan:
    """All that a network is made from."""

    ref: RuntimeRef
    spec: RuntimeSpec
    ports: tuple[HostPort, ...] = ()
    pid: int | None = None
    """A live process of the runtime; only if its namespace may have lost its name."""


class Sandbox(Protocol):
    """Gives a runtime its network, keeps it through restarts, and takes it away without leaving anything.

    Raises `SandboxFailed`, whose `reason` is what `NetworkReady` shows; each method may be repeated.
    """

    async def observe(self, ref: RuntimeRef) -> Certain[SandboxFacts]:
        """What is there. Cheap: no plugin is called, nothing is changed."""

    async def create(self, plan: SandboxPlan) -> SandboxFacts:
        """Make the namespace, with loopback in it, or give a live process's namespace its name again."""

    async def ask_for_ports(self, plan: SandboxPlan) -> None:
        """Raises `PortTaken` for one that is not led in yet and that somebody on the node listens on, `PortHeld` for one
        that still leads into another runtime."""

    async def attach(self, plan: SandboxPlan) -> SandboxFacts:
        """Bring the network into the namespace. There already and as planned: nothing. There and damaged, or with other
        ports: repaired in place, so that nobody who is connected notices."""

    async def remove(self, ref: RuntimeRef) -> None:
        """Take away the network, then the namespace. Not there: whatever else is left of it."""

    async def problem(self) -> SandboxFailed | None:
        """Why runtimes of this node that want a network cannot have one now; None where they can, or nobody offers one."""

    async def inventory(self) -> Sequence[Uid]:
        """Whoever has something here, whole or in part."""
