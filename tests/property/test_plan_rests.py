"""Nothing is done to a runtime that is as desired, whatever else may be said of it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tests.property.lives import REGISTRY, edit, newborn, with_numbers
from tests.property.model import archive_of
from tests.property.worlds import NODE, NOW, Draw

from perdure.api.conditions import Reason
from perdure.api.network import NetworkMode, network_mode
from perdure.api.phases import Phase
from perdure.api.runtime import (
    DesiredState,
    Runtime,
    RuntimeSpec,
    RuntimeStatus,
)
from perdure.plan.certainty import Absent, Certain, Present, Unknown
from perdure.plan.health import NO_HEALTH, NOTHING_PROBED, Health, ProbeFacts, ProbeKind, Verdict
from perdure.plan.planner import plan
from perdure.plan.ports import host_ports, numbers_of
from perdure.plan.spec_hash import spec_mark
from perdure.plan.steps import Begin
from perdure.plan.uptime import Uptime
from perdure.plan.world import (
    OWN_NAMESPACE,
    ContainerFacts,
    Freeze,
    Halted,
    ImageFacts,
    LedgerFacts,
    Observed,
    Op,
    PutAway,
    Record,
    SandboxFacts,
    SnapshotFacts,
    Source,
    TaskFacts,
    TaskState,
    Wanted,
    Workspace,
    World,
)


def healthy_world(draw: Draw) -> World:
    """A runtime that is as desired, with whatever may differ between two of those."""
    truth = with_numbers(newborn(draw))
    runtime, ref = truth.runtime, truth.ref
    assert runtime is not None
    n = draw.of((1, 2, 7))
    spec = edit(runtime.spec, stopped_ttl=draw.of(("100s", "720h", "Never")))
    runtime = edit(runtime, spec=spec)
    running, stopped = spec.desired_state is DesiredState.RUNNING, spec.desired_state is DesiredState.STOPPED
    image = REGISTRY[spec.image]
    halted = running and draw.chance(0.3)
    archived = archive_of(ref, 9, NODE, ref.snapshot_key(n), image)
    workspace = Workspace(
        ref.snapshot_key(n),
        n,
        image.name,
        image.digest,
        image.chain_id,
        prepared=True,
        gate=draw.maybe(0.3, archived) if not running else None,
        restored_from=draw.maybe(0.5, "br-hermes-1"),
        ever_started=running or draw.chance(0.5),
        archived=draw.maybe(0.3, archived) if not running or halted else None,
    )
    gate = workspace.gate.sequence if workspace.gate is not None else None
    alive = running and not halted
    mark = spec_mark(spec)
    removed = not running and not stopped
    put_away = not alive and draw.chance(0.8 if removed else 0.3)
    phase = Phase.RUNNING if alive else Phase.REMOVED if removed or put_away else Phase.STOPPED
    half_restored = workspace.gate is not None
    there = running or half_restored if removed or put_away else running or draw.chance(0.8)
    record = Record(
        ref=ref,
        newest_n=n,
        workspace=workspace if there and not put_away else None,
        operations=draw.of((1, 50)),
        numbered_from=NOW - 1e6,
        phase=phase,
        started_at=draw.moment() if alive else draw.maybe(0.5, NOW - 100),
        stopped_at=draw.maybe(0.5, NOW - 200) if alive else NOW - 50,
        stopped_up=Uptime("boot", 50.0),
        running=alive,
        restarts=draw.of((0, 3)),
        failures_in_row=draw.of((0, 2)),
        last_exit=draw.exit() if halted else draw.maybe(0.5, draw.exit()),
        halted=Halted(draw.of((Reason.COMPLETED, Reason.EXITED)), mark) if halted else None,
        put_away=PutAway(archived, draw.of(tuple(Source))) if put_away else None,
        health=_settled(draw, spec) if alive else NO_HEALTH,
    )
    facts = SnapshotFacts(workspace.key, n, image.chain_id, image.name, image.digest, gate)
    limits = mark if draw.chance(0.7) else f"{mark.partition('-')[0]}-{'0' * 8}"
    container = ContainerFacts(ref.container_id, workspace.key, limits)
    with_container = alive or ((halted or stopped) and not put_away and draw.chance(0.7))
    with_sandbox = alive or ((halted or stopped) and not put_away and draw.chance(0.7))
    images: tuple[Certain[ImageFacts], ...] = (Absent(), Unknown("not asked"), Present(draw.image()))
    ledgers: tuple[Certain[LedgerFacts], ...] = (Absent(), Unknown("not asked"), Present(LedgerFacts()))
    observed = Observed(
        container=Present(container) if with_container else Absent(),
        task=Present(TaskFacts(TaskState.RUNNING, 42)) if alive else Absent(),
        snapshots=Present((facts,) if record.workspace is not None else ()),
        sandbox=Present(_whole_network(runtime, record)) if with_sandbox else Absent(),
        image=draw.of(images),
        wanted_image=draw.of(images),
        ledger=draw.of((*ledgers, Present(replace(draw.ledger(), put_away=None)))),
        probes=_as_recorded(draw, record.health),
    )
    shown = edit(runtime, status=RuntimeStatus(phase=phase, snapshot_key=draw.maybe(0.5, workspace.key)))
    freeze = draw.maybe(0.1, Freeze(draw.of((Reason.MASS_ABSENCE, Reason.IDENTITY_CHANGED)), "look first"))
    past = draw.maybe(0.2, replace(draw.failure(), retry_at=NOW - 1))
    return World(ref, Wanted(shown), observed, record, past, freeze, Uptime("boot", 100.0))


def _settled(draw: Draw, spec: RuntimeSpec) -> Health:
    """What its probes have come to, whatever that is: it is on record, and told."""
    if spec.startup_probe is not None and draw.chance(0.3):
        return NO_HEALTH  # still coming up
    ready = draw.of((None, True, False)) if spec.readiness_probe is not None else None
    failing = (ProbeKind.READINESS,) if ready is False else ()
    return Health(started=spec.startup_probe is not None, ready=ready, failing=failing)


def _as_recorded(draw: Draw, health: Health) -> ProbeFacts:
    """What the prober says of it, which is nothing after a restart of the agent."""
    if draw.chance(0.3):
        return NOTHING_PROBED
    started = Verdict(True) if health.started else None
    readiness = Verdict(health.ready) if health.ready is not None else None
    return ProbeFacts(started, readiness, draw.maybe(0.5, Verdict(True)))


def at(world: World, now: float) -> World:
    """The same at another time."""
    return replace(world, uptime=Uptime("boot", 100.0 + now - NOW))


@given(st.integers(0, 100_000))
def test_nothing_is_done_to_what_is_as_desired(seed: int) -> None:
    world = healthy_world(Draw(seed))
    made = plan(world, NOW)
    assert made.steps == (), world
    assert made.waiting is None, world
    assert made.status is not None
    assert made.status.phase == world.record.phase
    assert plan(world, NOW) == made
    record, later = world.record, plan(at(world, NOW + 3600), NOW + 3600)
    assert isinstance(world.desired, Wanted)
    ttl = world.desired.runtime.spec.stopped_ttl_seconds
    if record.running or record.workspace is None or record.workspace.gate is not None or ttl is None:
        assert later.steps == (), world
        assert later.wake_at is None, world
        return
    assert record.stopped_at is not None
    due = record.stopped_at + ttl
    assert made.wake_at == due, world
    assert plan(at(world, due - 0.01), due - 0.01).steps == (), world
    begun = [step.op for step in plan(at(world, due), due).steps if isinstance(step, Begin)]
    assert begun == ([Op.CLEANUP] if world.freeze is None else []), world


def _whole_network(runtime: Runtime, record: Record) -> SandboxFacts:
    spec = runtime.spec
    if network_mode(spec.network, node_has_cni=True) is NetworkMode.NONE:
        return SandboxFacts("/run/netns/x")
    policy = spec.network.policy or OWN_NAMESPACE
    ports = host_ports(runtime, numbers_of(runtime, record))
    assert ports is not None
    return SandboxFacts("/run/netns/x", NetworkMode.CNI, True, ("10.0.0.2",), ports, policy)
