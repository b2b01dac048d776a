"""The sandbox for `network.mode: none`: a network namespace of the runtime's own with nothing in it but loopback.

The namespace stays through restarts of the container. Made by the composition roots, driven by the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from perdure.api.conditions import Reason
from perdure.api.names import RuntimeRef, Uid
from perdure.network import netns
from perdure.network.netns import NameState
from perdure.plan.certainty import Absent, Certain, Present, Unknown
from perdure.plan.world import SandboxFacts
from perdure.reconcile.ports.errors import SandboxFailed
from perdure.reconcile.ports.sandbox import SandboxPlan


class LoopbackSandbox:
    """`perdure.reconcile.ports.sandbox.Sandbox`. Names are `<run_dir>/netns/<uid>`; `run_dir` should not outlive a reboot."""

    def __init__(self, run_dir: Path) -> None:
        self._base = run_dir / "netns"

    def _path(self, ref: RuntimeRef) -> Path:
        return self._base / ref.uid

    async def observe(self, ref: RuntimeRef) -> Certain[SandboxFacts]:
        path = self._path(ref)
        try:
            found = await asyncio.to_thread(netns.state, path)
        except OSError as error:
            return Unknown(f"cannot look at the network namespace of {ref}: {error}")
        return Present(SandboxFacts(netns=str(path))) if found is NameState.MOUNTED else Absent()

    async def create(self, plan: SandboxPlan) -> SandboxFacts:
        path = self._path(plan.ref)
        make = partial(netns.adopt, path, plan.pid) if plan.pid is not None else partial(netns.create, path)
        try:
            await asyncio.to_thread(make)
        except OSError as error:
            raise SandboxFailed(
                f"cannot make the network namespace of {plan.ref}: {error}; the agent needs CAP_SYS_ADMIN and {path.parent}"
            ) from error
        return SandboxFacts(netns=str(path))

    async def ask_for_ports(self, plan: SandboxPlan) -> None:
        """No port leads into it."""

    async def attach(self, plan: SandboxPlan) -> SandboxFacts:
        """Loopback is in it from its first instant, so only the namespace may be missing."""
        match await self.observe(plan.ref):
            case Present(facts):
                return facts
            case Unknown(why):
                raise SandboxFailed(why)
            case Absent():
                raise SandboxFailed(
                    f"the network namespace of {plan.ref} is gone from {self._path(plan.ref)}; it is made anew",
                    reason=Reason.NETWORK_RETRYING,
                )

    async def remove(self, ref: RuntimeRef) -> None:
        try:
            await asyncio.to_thread(netns.remove, self._path(ref))
        except OSError as error:
            raise SandboxFailed(f"cannot remove the network namespace of {ref}: {error}") from error

    async def problem(self) -> SandboxFailed | None:
        return None

    async def inventory(self) -> Sequence[Uid]:
        try:
            return tuple(Uid(name) for name in await asyncio.to_thread(netns.names, self._base))
        except OSError as error:
            raise SandboxFailed(f"cannot list network namespaces in {self._base}: {error}") from error
