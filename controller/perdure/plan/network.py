"""Rules about a runtime's network: when it is in the way of a start, and when it is repaired.

What the network is made of is the sandbox's business; here is only when something is to be done about it.
"""

from __future__ import annotations

from dataclasses import replace

from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.network import NetworkMode
from perdure.api.phases import Phase
from perdure.plan.certainty import Absent, Present
from perdure.plan.health import MESSAGE_CHARACTERS, HealthEvent, HealthKind
from perdure.plan.ports import host_ports, numbers_of, still_wanted
from perdure.plan.scene import Scene
from perdure.plan.steps import CreateSandbox, LeadOutPorts, Note, Plan, RemoveSandbox, RepairNetwork
from perdure.plan.way_down import stop_and_reap
from perdure.plan.world import OWN_NAMESPACE, Failure, Op, SandboxFacts, Source, TaskState

NUMBERS_RETRY_SECONDS = 5.0
"""Numbers come with an event; this is for the case that it was lost."""


def is_about_network(failure: Failure) -> bool:
    return failure.reason in _NETWORK_REASONS


def has_another_network(scene: Scene) -> bool:
    """Whether its network is of another kind than the spec asks for: then it stops by wish, and starts in a new one."""
    sandbox, wanted = scene.world.observed.sandbox, scene.runtime.spec.network.mode
    return isinstance(sandbox, Present) and wanted is not None and sandbox.it.mode is not wanted


def given_up_ports_lead_out(scene: Scene) -> Plan | None:
    """Without a process, too: the ledger gives a number that is not asked for any more to whoever asks next."""
    sandbox = scene.world.observed.sandbox
    if scene.task is not None or scene.record.running or not isinstance(sandbox, Present) or not sandbox.it.attached:
        return None
    kept = still_wanted(scene.runtime, scene.record, sandbox.it)
    if kept == sandbox.it.ports:
        return None
    return scene.do(LeadOutPorts(kept), phase=scene.record.phase)


def network_fits(scene: Scene) -> Plan | None:
    """Before a container is made or a task started: the kind of network that the spec asks for, ports with numbers."""
    if has_another_network(scene):
        stopping = stop_and_reap(scene, Op.RESTART, Source.KUBECTL)
        return stopping or scene.under(Op.RESTART, Source.KUBECTL, RemoveSandbox())
    if scene.task is None and host_ports(scene.runtime, numbers_of(scene.runtime, scene.record)) is None:
        message = "the controller has not reserved its ports on the node yet"
        scene.draft.set(ConditionType.NETWORK_READY, Truth.FALSE, Reason.PORTS_PENDING, message)
        return scene.wait(Reason.PORTS_PENDING, message, until=scene.now + NUMBERS_RETRY_SECONDS)
    return None


def network_is_whole(scene: Scene) -> Plan | None:
    """Of a runtime that runs: what is missing of its network comes back, what was changed of it is brought in."""
    task, sandbox = scene.task, scene.world.observed.sandbox
    if task is None or task.state is not TaskState.RUNNING:
        return None
    if isinstance(sandbox, Absent):
        return scene.do(CreateSandbox(task.pid), phase=Phase.RUNNING)
    if not isinstance(sandbox, Present) or sandbox.it.mode is NetworkMode.NONE:
        return None
    why = _what_is_wrong(scene, sandbox.it)
    told = _damage_told(scene, sandbox.it)
    if not why:
        return scene.do(*told, phase=Phase.RUNNING) if told else None
    if sandbox.it.attached and not sandbox.it.damage:
        scene.show_alive()
    else:
        scene.draft.set(ConditionType.READY, Truth.FALSE, Reason.IN_PROGRESS, why)
    return scene.do(*told, RepairNetwork(why), phase=Phase.RUNNING)


def _damage_told(scene: Scene, facts: SandboxFacts) -> tuple[Note, ...]:
    """Once when it is found, however often its repair is tried; what is missing while it starts is no damage yet."""
    health, damage = scene.record.health, facts.damage or ("" if facts.attached else "nothing is attached")
    if bool(damage) == bool(health.damage) or not scene.record.running or scene.record.operation is not None:
        return ()
    noted = replace(scene.record, health=replace(health, damage=damage[:MESSAGE_CHARACTERS]))
    if not damage:
        return (Note(noted, "its network is whole again"),)
    found = HealthEvent(HealthKind.INSPECT_UNHEALTHY, f"its network: {damage}")
    return (Note(noted, "its network was found damaged", (found,)),)


def _what_is_wrong(scene: Scene, facts: SandboxFacts) -> str:
    if not facts.attached:
        return "nothing is attached"
    if facts.damage:
        return facts.damage
    wanted = host_ports(scene.runtime, numbers_of(scene.runtime, scene.record))
    if wanted is not None and wanted != facts.ports:
        return "other ports are wanted"
    if (scene.runtime.spec.network.policy or OWN_NAMESPACE) != facts.policy:
        return "another network policy is wanted"
    return ""


_NETWORK_REASONS = frozenset(
    {
        Reason.NETWORK_FAILED,
        Reason.NETWORK_RETRYING,
        Reason.NO_CNI_CONFIGURATION,
        Reason.CNI_CONFIGURATION_INVALID,
        Reason.CNI_PLUGIN_MISSING,
        Reason.ADDRESS_POOL_EXHAUSTED,
        Reason.BRIDGE_CONFLICT,
        Reason.NO_ADDRESS,
        Reason.PORT_TAKEN,
        Reason.PORT_RANGE_EXHAUSTED,
    }
)
