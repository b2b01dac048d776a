"""Lives of runtimes: an object, rounds of plans whose effects may be cut off anywhere, accidents and edits between them.

What must hold at every instant of a life is asserted here: one plan per look, phases that may follow one another, and a
task only ever on its own data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
from tests.property.model import (
    Archive,
    Truth,
    apply,
    archive_of,
    effects,
    look,
    publish,
    runs,
    started,
    wanted_lineage,
)
from tests.property.worlds import CHAINS, IMAGES, NODE, NODE_NAME, NOW, PORTS, PROBE, Draw, told

from perdure.api import names
from perdure.api.conditions import Reason
from perdure.api.names import Kind, NamespaceUid, RuntimeRef, Uid
from perdure.api.network import NetworkMode
from perdure.api.phases import Phase, may_follow
from perdure.api.runtime import (
    DeletionPolicy,
    DesiredState,
    ResourceLimits,
    Resources,
    RestartPolicy,
    Restore,
    RestorePolicy,
    Runtime,
    RuntimeSpec,
    RuntimeStatus,
)
from perdure.plan.allotment import are_published, wanted_ports
from perdure.plan.operations import DURABLE, TRANSIENT_PHASE
from perdure.plan.planner import plan
from perdure.plan.steps import AdoptSnapshot, Begin, Finish, Note, Plan, Step
from perdure.plan.world import (
    Exit,
    Failure,
    Gone,
    ImageFacts,
    SandboxFacts,
    TaskState,
    Terminating,
    Wanted,
)

REGISTRY = {name: ImageFacts(name, "sha256:dd", CHAINS[0]) for name in IMAGES}
EARLIER = ("earlier-1", "earlier-2")
"""Lineages of archives that an earlier life of the identity left."""

PATIENCE_SECONDS = 400.0
"""Longer than any wait for another try. What is due later is not waited for."""

edit = msgspec.structs.replace


def newborn(draw: Draw) -> Truth:
    """An object that was just bound, in a world that may know earlier lives of its identity."""
    kind = draw.of(tuple(Kind))
    ref = RuntimeRef(kind, "agents", "hermes", Uid("uid-1"), NamespaceUid("ns-1"))
    earlier = replace(ref, uid=Uid("uid-0"))
    archives = {
        number: Archive(archive_of(earlier, number, NODE, earlier.snapshot_key(number), REGISTRY[IMAGES[0]]), lineage)
        for number, lineage in enumerate(EARLIER[: draw.of((0, 0, 1, 2))], start=1)
    }
    named = Restore(policy=RestorePolicy.ARCHIVE, archive=f"{kind.short}-hermes-1")
    spec = edit(draw.spec(), restore=draw.of((Restore(), Restore(), Restore(policy=RestorePolicy.NONE), named)))
    runtime = Runtime(
        kind=kind,
        namespace=ref.namespace,
        name=ref.name,
        uid=ref.uid,
        generation=1,
        resource_version="10",
        labels={
            names.LABEL_NODE: NODE_NAME,
            names.LABEL_NODE_ID: NODE,
            names.LABEL_NAMESPACE_UID: ref.namespace_uid,
        },
        annotations={},
        finalizers=(names.FINALIZER,),
        deletion_timestamp=None,
        creation_timestamp="2026-01-01T00:00:00Z",
        spec=spec,
        status=RuntimeStatus(),
    )
    return Truth(ref, NODE, Wanted(runtime), REGISTRY, archives=archives)


def edited(truth: Truth, spec: RuntimeSpec) -> Truth:
    """A new generation: a failure does not count any more. A Terminating object can be edited, too."""
    runtime = truth.runtime
    if runtime is None:
        return truth
    return replace(
        truth.with_runtime(edit(runtime, spec=spec, generation=runtime.generation + 1)),
        failure=None,
    )


Accident = Callable[[Draw, Truth, float], Truth]


def _process_exits(draw: Draw, truth: Truth, now: float) -> Truth:
    if truth.task is None or truth.task.state is not TaskState.RUNNING:
        return truth
    ended = Exit(draw.of((0, 1, 137, None)), now, draw.chance(0.1))
    return replace(truth, task=replace(truth.task, state=TaskState.STOPPED, exit=ended))


def _process_grows_deaf(draw: Draw, truth: Truth, now: float) -> Truth:
    return replace(truth, deaf=True)


def _probes_answer(draw: Draw, truth: Truth, now: float) -> Truth:
    """As many answers as make a verdict came; or the agent was started again, and has none."""
    return replace(truth, probes=draw.probes())


def _machine_reboots(draw: Draw, truth: Truth, now: float) -> Truth:
    return replace(truth, task=None, sandbox=None)


def _network_is_damaged(draw: Draw, truth: Truth, now: float) -> Truth:
    """Somebody flushed rules, took the interface, or took the namespace's name away."""
    sandbox = truth.sandbox
    if sandbox is None:
        return truth
    if draw.chance(0.3):
        return replace(truth, sandbox=None)
    if sandbox.mode is NetworkMode.NONE:
        return truth
    gone = SandboxFacts(sandbox.netns, sandbox.mode, attached=False)
    return replace(truth, sandbox=draw.of((gone, replace(sandbox, damage="the rules are gone"))))


def _numbers_are_lost(draw: Draw, truth: Truth, now: float) -> Truth:
    """Somebody took the annotation off."""
    runtime = truth.runtime
    return truth if runtime is None else truth.with_runtime(edit(runtime, annotations=_without_numbers(runtime)))


def _without_numbers(runtime: Runtime) -> dict[str, str]:
    return {name: text for name, text in runtime.annotations.items() if name != names.ANNOTATION_HOST_PORTS}


def _controller_publishes(draw: Draw, truth: Truth, now: float) -> Truth:
    return with_numbers(truth)


def with_numbers(truth: Truth) -> Truth:
    """The controller: what the node serves under its number stays so, what is new has one by now."""
    runtime = truth.runtime
    if runtime is None or runtime.terminating or are_published(runtime):
        return truth
    served = dict(truth.known().host_ports)
    numbers = {port.name: port.host_port or served.get(port.name, 7000) for port in wanted_ports(runtime.spec)}
    return truth.with_runtime(edit(runtime, annotations={**_without_numbers(runtime), **told(numbers)}))


def _container_is_lost(draw: Draw, truth: Truth, now: float) -> Truth:
    return replace(truth, container=None)


def _somebody_starts_it(draw: Draw, truth: Truth, now: float) -> Truth:
    """With the engine's own tool; it knows no gates, but nobody is that unlucky here."""
    key = truth.container.snapshot_key if truth.container is not None else None
    snapshot = truth.snapshots.get(key) if key is not None else None
    if key is None or snapshot is None or snapshot.facts.gate is not None:
        return truth
    if truth.task is not None or truth.sandbox is None:
        return truth
    return started(truth, key) if draw.chance(0.5) else truth


def _journal_is_lost(draw: Draw, truth: Truth, now: float) -> Truth:
    return replace(truth, record=None, failure=None)


def _images_are_pruned(draw: Draw, truth: Truth, now: float) -> Truth:
    return replace(truth, images=frozenset())


def _spec_is_edited(draw: Draw, truth: Truth, now: float) -> Truth:
    runtime = truth.runtime
    if runtime is None:
        return truth
    spec = runtime.spec
    changed = (
        edit(spec, desired_state=draw.of(tuple(DesiredState))),
        edit(spec, desired_state=DesiredState.RUNNING),
        edit(spec, args=draw.of(((), ("other",)))),
        edit(spec, image=draw.of(IMAGES)),
        edit(spec, restart_policy=draw.of(tuple(RestartPolicy))),
        edit(spec, deletion_policy=draw.of(tuple(DeletionPolicy))),
        edit(spec, network=draw.network()),
        edit(spec, ports=draw.of(PORTS)),
        edit(spec, readiness_probe=draw.maybe(0.5, PROBE), liveness_probe=draw.maybe(0.5, PROBE)),
        edit(spec, resources=Resources(limits=ResourceLimits(pids=draw.of((100, 200))))),
    )
    return edited(truth, draw.of(changed))


def _time_is_set(draw: Draw, truth: Truth, now: float) -> Truth:
    """How long it is kept when it is stopped: mostly for so short that it is cleaned up while somebody looks."""
    runtime = truth.runtime
    if runtime is None:
        return truth
    return edited(truth, edit(runtime.spec, stopped_ttl=draw.of(("0s", "1s", "100s", "720h", "Never"))))


def _cleanup_is_asked_for(draw: Draw, truth: Truth, now: float) -> Truth:
    runtime = truth.runtime
    if runtime is None:
        return truth
    asked = {names.ANNOTATION_REQUEST: draw.of(("cleanup/1", "cleanup/2", "cleanup/3", "nonsense"))}
    return truth.with_runtime(edit(runtime, annotations={**runtime.annotations, **asked}))


def _deletion_begins(draw: Draw, truth: Truth, now: float) -> Truth:
    runtime = truth.runtime
    if runtime is None or runtime.terminating or draw.chance(0.2):
        return truth
    return truth.with_runtime(edit(runtime, deletion_timestamp="2027-01-01T00:00:00Z"))


def _object_goes(draw: Draw, truth: Truth, now: float) -> Truth:
    """Somebody took our finalizer off by hand."""
    seen = truth.record is not None and truth.record.deletion_seen
    return replace(truth, desired=Gone(), failure=None) if seen and draw.chance(0.3) else truth


def _person_gives_up(draw: Draw, truth: Truth, now: float) -> Truth:
    runtime = truth.runtime
    if runtime is None or not runtime.terminating or draw.chance(0.3):
        return truth
    given_up = {**runtime.annotations, names.ANNOTATION_FORCE_RELEASE: "the disk is gone"}
    return truth.with_runtime(edit(runtime, annotations=given_up))


def _failure_is_forgotten(draw: Draw, truth: Truth, now: float) -> Truth:
    return replace(truth, failure=None)


ACCIDENTS: tuple[Accident, ...] = (
    _process_exits,
    _process_exits,
    _process_grows_deaf,
    _process_grows_deaf,
    _probes_answer,
    _probes_answer,
    _machine_reboots,
    _network_is_damaged,
    _network_is_damaged,
    _numbers_are_lost,
    _controller_publishes,
    _controller_publishes,
    _container_is_lost,
    _somebody_starts_it,
    _journal_is_lost,
    _images_are_pruned,
    _spec_is_edited,
    _spec_is_edited,
    _time_is_set,
    _cleanup_is_asked_for,
    _deletion_begins,
    _object_goes,
    _person_gives_up,
    _failure_is_forgotten,
)


def is_refused_by_nobody(step: Step) -> bool:
    """Whether it is a write to the node's journal alone: with a journal that takes nothing nothing can be done at all."""
    match step:
        case Begin(durable=elsewhere) | Finish(release=elsewhere):
            return not elsewhere
        case _:
            return isinstance(step, Note | AdoptSnapshot)


def step_fails(draw: Draw, truth: Truth, now: float) -> Truth:
    """What the reconciler notes when a step was refused: the failure, and the end of an operation that is not durable."""
    record = truth.known()
    blocks, user = draw.chance(0.2), draw.chance(0.3)
    failure = Failure(Reason.START_FAILED, "it failed", "StartTask", user, blocks, now + draw.of((0.5, 60.0)))
    if record.operation is None or record.operation.op in DURABLE:
        return replace(truth, failure=failure)
    if blocks or user:
        after = Phase.BLOCKED if blocks else Phase.FAILED
    elif record.running:
        after = Phase.RUNNING
    else:
        after = record.phase or TRANSIENT_PHASE[record.operation.op]
    prepared = record.workspace.key if record.workspace is not None and record.workspace.prepared else None
    closed = replace(record, operation=None, phase=after)
    return replace(truth, failure=failure, record=closed, data_seen=prepared or truth.data_seen)


@dataclass(slots=True)
class Life:
    """One life as it goes; asserts at every state what must hold always."""

    truth: Truth
    now: float = NOW
    story: tuple[str, ...] = ()

    def become(self, truth: Truth, why: str) -> None:
        self.story = (*self.story, why)
        before, self.truth = self.truth, truth
        if runs(truth) and not runs(before):
            self._runs_on_its_own_data(before)

    def _runs_on_its_own_data(self, before: Truth) -> None:
        truth, runtime = self.truth, self.truth.runtime
        assert truth.container is not None, self.story
        assert runtime is not None, self.story
        snapshot = truth.snapshots[truth.container.snapshot_key]
        wanted = before.written or wanted_lineage(before, runtime.spec, snapshot.facts.key)
        assert (snapshot.lineage, snapshot.writes) == (wanted, before.writes + 1), self.story

    def look_and_plan(self) -> Plan | None:
        world = look(self.truth, self.now)
        if world is None:
            return None
        made = plan(world, self.now)
        assert made == plan(world, self.now), self.story
        return made

    def planned(self) -> tuple[Step, ...]:
        """The steps of the next plan."""
        made = self.look_and_plan()
        return made.steps if made is not None else ()

    def publish(self, made: Plan) -> None:
        runtime = self.truth.runtime
        if made.status is None or runtime is None or made.status.phase is None:
            return
        before = Phase(runtime.status.phase) if runtime.status.phase is not None else None
        assert may_follow(before, Phase(made.status.phase)), (before, made.status.phase, self.story)
        self.become(publish(self.truth, made.status), f"shown: {made.status.phase}")

    # ------------------------------------------------------------------------------------------ rounds

    def stormy_round(self, draw: Draw) -> None:
        """One plan, of which anything may be cut off or refused, then perhaps an accident."""
        made = self.look_and_plan()
        if made is not None:
            if made.settled or not made.steps or draw.chance(0.5):
                self.publish(made)
            for step in made.steps:
                stages = effects(step, self.truth, self.now)
                fate = draw.of(("done",) * 8 + ("killed", "refused"))
                if fate == "done" or (fate == "refused" and is_refused_by_nobody(step)):
                    self.become(stages[-1], repr(step))
                    continue
                if fate == "killed":
                    self.become(draw.of((self.truth, *stages)), f"killed in {step!r}")
                    self.become(replace(self.truth, failure=None), "restarted")
                else:
                    self.become(step_fails(draw, self.truth, self.now), f"refused: {step!r}")
                break
        if draw.chance(0.4):
            accident = draw.of(ACCIDENTS)
            self.become(accident(draw, self.truth, self.now), accident.__name__)
        self.now += draw.of((0.0, 0.2, 1.0, 30.0, 700.0))

    def calm_round(self) -> bool:
        """One plan, all of it done, and whatever the controller does then; whether there was anything to do."""
        made = self.look_and_plan()
        if made is None:
            return False
        self.publish(made)
        for step in made.steps:
            self.become(apply(step, self.truth, self.now), repr(step))
        self.now += 0.1
        if made.steps:
            return True
        if isinstance(self.truth.desired, Terminating) and self._controller_lets_go():
            return True
        numbered = with_numbers(self.truth)
        if numbered != self.truth:
            self.become(numbered, "the controller published numbers")
            return True
        if made.waiting is None and made.wake_at is not None and made.wake_at - self.now > PATIENCE_SECONDS:
            return False  # what is stopped is kept for so long
        if made.wake_at is None or made.waiting is None:
            self.now = max(self.now, made.wake_at or 0.0)
            return made.wake_at is not None
        self.now = max(self.now, made.wake_at)
        after = self.look_and_plan()
        return after is not None and (
            bool(after.steps) or after.waiting != replace(made.waiting, until=self._next(after))
        )

    @staticmethod
    def _next(made: Plan) -> float | None:
        return made.waiting.until if made.waiting is not None else None

    def _controller_lets_go(self) -> bool:
        runtime = self.truth.runtime
        given_up = runtime is not None and runtime.force_release is not None
        if not self.truth.released and not given_up:
            return False
        gone = replace(self.truth, desired=Gone(), failure=None, force_released=self.truth.force_released or given_up)
        self.become(gone, "the controller took the finalizer off")
        return True
