"""One question of one probe: who is asked, through which part of the node, and what the answer means.

`target_of` says what a look at a runtime leaves to be asked; the prober keeps the time and calls `Asker.ask`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from perdure.api.names import ContainerId, Uid
from perdure.api.probes import Probe
from perdure.api.runtime import DesiredState, RuntimeSpec
from perdure.plan.certainty import Present
from perdure.plan.health import MESSAGE_CHARACTERS, ProbeKind, has_come_up
from perdure.plan.probes import probe_of
from perdure.plan.world import SandboxFacts, TaskState, Wanted, World
from perdure.reconcile.ports.engine import Engine
from perdure.reconcile.ports.errors import PortError
from perdure.reconcile.ports.probing import Endpoint, NetworkProbes, ProbeOutcome, ProbeResult

LOOPBACK = "127.0.0.1"
"""Where a container without an address of its own is asked."""


@dataclass(frozen=True, slots=True)
class Target:
    """A task that is to be asked, and by which probes."""

    uid: Uid
    namespace: str
    container: ContainerId
    pid: int
    """Another pid is another task: nothing that was answered counts for it."""
    started_at: float
    probes: Mapping[ProbeKind, Probe]
    netns: str
    """Empty: not there, or not known."""
    address: str
    ports: Mapping[str, int]
    secrets: frozenset[str]
    """Names of environment variables whose values come from Secrets: they are not shown, whatever a command prints."""


def target_of(world: World) -> Target | None:
    """Who is to be asked after this look: a task that is to go on running, and only what counts now."""
    desired, task, record = world.desired, world.observed.task, world.record
    if not isinstance(desired, Wanted) or desired.runtime.invalid is not None:
        return None
    spec, health = desired.runtime.spec, record.health
    if spec.desired_state is not DesiredState.RUNNING or not record.running or health.ended_for:
        return None
    if not isinstance(task, Present) or task.it.state is not TaskState.RUNNING:
        return None
    due = (ProbeKind.READINESS, ProbeKind.LIVENESS) if has_come_up(spec, health) else (ProbeKind.STARTUP,)
    probes = {kind: probe for kind in due if (probe := probe_of(spec, kind)) is not None}
    if not probes:
        return None
    sandbox = world.observed.sandbox.it if isinstance(world.observed.sandbox, Present) else None
    return Target(
        uid=world.ref.uid,
        namespace=world.ref.namespace,
        container=world.ref.container_id,
        pid=task.it.pid,
        started_at=record.started_at or 0.0,
        probes=probes,
        netns=sandbox.netns if sandbox is not None else "",
        address=_address(sandbox),
        ports={port.name: port.container_port for port in spec.ports},
        secrets=_secrets(spec),
    )


def _address(sandbox: SandboxFacts | None) -> str:
    return sandbox.addresses[0] if sandbox is not None and sandbox.addresses else LOOPBACK


def _secrets(spec: RuntimeSpec) -> frozenset[str]:
    return frozenset(
        variable.name
        for variable in spec.env
        if variable.value_from is not None and variable.value_from.secret_key_ref is not None
    )


class Asker:
    """One per agent."""

    def __init__(self, engine: Engine, networks: NetworkProbes) -> None:
        self._engine = engine
        self._networks = networks

    async def ask(self, target: Target, probe: Probe) -> ProbeResult:
        """Ask once; done soon after the probe's timeout. Never raises what a part of the node said: that is `UNKNOWN`."""
        seconds = float(probe.timeout_seconds)
        try:
            if probe.exec is not None:
                return await self._run(target, probe.exec.command, seconds)
            to = _endpoint(target, probe)
            if probe.http_get is not None:
                return await self._networks.http(to, probe.http_get, seconds)
            if probe.tcp_socket is not None:
                return await self._networks.tcp(to, seconds)
            if probe.udp_socket is not None:
                return await self._networks.udp(to, _datagram(probe.udp_socket.payload), seconds)
        except PortError as error:
            return ProbeResult(ProbeOutcome.UNKNOWN, str(error))
        return ProbeResult(ProbeOutcome.UNKNOWN, "the probe has no action")

    async def _run(self, target: Target, command: tuple[str, ...], seconds: float) -> ProbeResult:
        done = await self._engine.execute(target.container, command, seconds, target.secrets)
        said = f": {done.output}" if done.output else ""
        if done.code is None:
            message = f"the command did not end within {seconds:g} s{said}"
            return ProbeResult(ProbeOutcome.FAILURE, message[:MESSAGE_CHARACTERS], late=True)
        if done.code == 0:
            return ProbeResult(ProbeOutcome.SUCCESS)
        return ProbeResult(
            ProbeOutcome.FAILURE, f"the command ended with exit code {done.code}{said}"[:MESSAGE_CHARACTERS]
        )


def _endpoint(target: Target, probe: Probe) -> Endpoint:
    port = probe.port
    number = target.ports.get(port, 0) if isinstance(port, str) else port or 0
    return Endpoint(target.netns, target.address, number)


def _datagram(payload: str | None) -> bytes:
    """What the CRD took for base64; one that is none after all is sent as it stands."""
    text = payload or ""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return text.encode()
