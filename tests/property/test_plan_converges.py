"""From wherever accidents leave a runtime, the plans lead to what is desired, in few rounds, and data stays what it is.

Each example is a life: an object in an empty or a known world, rounds of plans whose effects may be cut off anywhere,
accidents and edits between them; then nothing more happens, and every effect succeeds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.model import Archive, Truth, apply, archive_of, effects, look, publish, wanted_lineage
from tests.property.worlds import CHAINS, IMAGES, NODE, NODE_NAME, NOW, Draw

from perdure.api import names
from perdure.api.conditions import Reason
from perdure.api.names import Kind, NamespaceUid, RuntimeRef, Uid
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
from perdure.plan.certainty import Absent, Present, Unknown
from perdure.plan.operations import DURABLE, TRANSIENT_PHASE
from perdure.plan.planner import plan
from perdure.plan.spec_hash import same_process, spec_mark
from perdure.plan.steps import AdoptSnapshot, Begin, Finish, Note, Plan, StartTask, Step
from perdure.plan.world import (
    ContainerFacts,
    Exit,
    Failure,
    Freeze,
    Gone,
    Halted,
    ImageFacts,
    LedgerFacts,
    Observed,
    Record,
    SandboxFacts,
    SnapshotFacts,
    TaskFacts,
    TaskState,
    Terminating,
    Wanted,
    Workspace,
    World,
)

LIVES_PER_EXAMPLE = 2
ROUNDS_OF_ACCIDENTS = 14
ROUNDS_TO_CONVERGE = 40
REGISTRY = {name: ImageFacts(name, "sha256:dd", CHAINS[0]) for name in IMAGES}
EARLIER = ("earlier-1", "earlier-2")
"""Lineages of archives that an earlier life of the identity left."""

edit = msgspec.structs.replace


# ---------------------------------------------------------------------------------------------- lives


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


def _machine_reboots(draw: Draw, truth: Truth, now: float) -> Truth:
    return replace(truth, task=None, sandbox=None)


def _container_is_lost(draw: Draw, truth: Truth, now: float) -> Truth:
    return replace(truth, container=None)


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
        edit(spec, resources=Resources(limits=ResourceLimits(pids=draw.of((100, 200))))),
    )
    return edited(truth, draw.of(changed))


def _deletion_begins(draw: Draw, truth: Truth, now: float) -> Truth:
    runtime = truth.runtime
    if runtime is None or runtime.terminating or draw.chance(0.5):
        return truth
    return truth.with_runtime(edit(runtime, deletion_timestamp="2027-01-01T00:00:00Z"))


def _object_goes(draw: Draw, truth: Truth, now: float) -> Truth:
    """Somebody took our finalizer off by hand."""
    seen = truth.record is not None and truth.record.deletion_seen
    return replace(truth, desired=Gone(), failure=None) if seen and draw.chance(0.3) else truth


def _person_gives_up(draw: Draw, truth: Truth, now: float) -> Truth:
    runtime = truth.runtime
    if runtime is None or not runtime.terminating or draw.chance(0.7):
        return truth
    return truth.with_runtime(edit(runtime, annotations={names.ANNOTATION_FORCE_RELEASE: "the disk is gone"}))


def _failure_is_forgotten(draw: Draw, truth: Truth, now: float) -> Truth:
    return replace(truth, failure=None)


ACCIDENTS: tuple[Accident, ...] = (
    _process_exits,
    _process_exits,
    _machine_reboots,
    _container_is_lost,
    _journal_is_lost,
    _images_are_pruned,
    _spec_is_edited,
    _spec_is_edited,
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
        if truth.task is not None and truth.task.state is TaskState.RUNNING and before.task is None:
            self._runs_on_its_own_data(before)

    def _runs_on_its_own_data(self, before: Truth) -> None:
        truth, runtime = self.truth, self.truth.runtime
        assert truth.container is not None, self.story
        assert runtime is not None, self.story
        snapshot = truth.snapshots[truth.container.snapshot_key]
        wanted = before.written or wanted_lineage(before, runtime.spec, snapshot.facts.key)
        assert snapshot.lineage == wanted, self.story

    def look_and_plan(self) -> Plan | None:
        world = look(self.truth)
        if world is None:
            return None
        made = plan(world, self.now)
        assert made == plan(world, self.now), self.story
        return made

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


@cache
def some_lives(seed: int) -> tuple[tuple[Truth, Life], ...]:
    """Lives after their storm and at their end. The first of each pair is what the calm began with."""
    draw, lives = Draw(seed), []
    for _ in range(LIVES_PER_EXAMPLE):
        life = Life(newborn(draw))
        for _ in range(draw.of(range(ROUNDS_OF_ACCIDENTS + 1))):
            life.stormy_round(draw)
        began = life.truth
        life.story = (*life.story, "---- calm ----")
        for _ in range(ROUNDS_TO_CONVERGE):
            if not life.calm_round():
                break
        else:
            pytest.fail(f"no end after {ROUNDS_TO_CONVERGE} rounds: {life.story}")
        lives.append((began, life))
    return tuple(lives)


lives = st.integers(0, int(os.environ.get("PERDURE_TEST_SEEDS", "1000"))).map(some_lives)


# ---------------------------------------------------------------------------------------------- ends


@given(lives)
@settings(max_examples=300)
def test_every_life_comes_to_the_end_that_is_desired(drawn: tuple[tuple[Truth, Life], ...]) -> None:
    for began, life in drawn:
        truth = life.truth
        match truth.desired:
            case Wanted(runtime):
                _ends_as_the_spec_says(life, truth, runtime)
            case _:
                _ends_gone(life, began, truth)


def _ends_as_the_spec_says(life: Life, truth: Truth, runtime: Runtime) -> None:
    story, record, workspace = life.story, truth.known(), truth.known().workspace
    failed = runtime.status.phase == Phase.FAILED
    assert record.operation is None or failed, story
    match runtime.spec.desired_state:
        case DesiredState.STOPPED:
            assert truth.task is None, story
            assert runtime.status.phase == Phase.STOPPED, story
        case DesiredState.REMOVED:
            assert (truth.task, truth.container, truth.sandbox) == (None, None, None), story
            assert runtime.status.phase == Phase.REMOVED, story
        case DesiredState.RUNNING if record.halted is not None:
            assert truth.task is None, story
            assert runtime.spec.restart_policy is not RestartPolicy.ALWAYS or record.last_exit is not None, story
            assert runtime.status.phase == Phase.STOPPED, story
        case DesiredState.RUNNING if workspace is None:
            key = truth.ref.snapshot_key(record.newest_n + 1)
            assert wanted_lineage(truth, runtime.spec, key) is None, story
            assert runtime.status.phase == Phase.FAILED, story
        case DesiredState.RUNNING:
            assert workspace is not None, story
            assert truth.task is not None, story
            assert truth.task.state is TaskState.RUNNING, story
            assert truth.container is not None, story
            assert truth.container.snapshot_key == workspace.key, story
            assert same_process(truth.container.spec_hash, spec_mark(runtime.spec)), story
            assert truth.sandbox is not None, story
            assert workspace.gate is None, story
            assert truth.snapshots[workspace.key].facts.gate is None, story
            assert runtime.status.phase == Phase.RUNNING, story
    if truth.written is not None:
        assert workspace is not None, story
        assert truth.snapshots[workspace.key].lineage == truth.written, story


def _ends_gone(life: Life, began: Truth, truth: Truth) -> None:
    story = life.story
    kept = {archive.lineage for archive in truth.archives.values()}
    purging = any("PURGE" in line or "Purge" in line for line in story)
    last = life.look_and_plan()
    if last is not None and last.waiting is not None:
        # The journal was lost after the snapshot was removed: nobody can tell that from data that is missing.
        assert last.waiting.reason is Reason.DATA_MISSING, story
        assert any(line.startswith("RemoveWorkspace") for line in story[: story.index("_journal_is_lost")]), story
        assert purging or truth.written is None or truth.written in kept, story
        return
    assert truth.desired == Gone(), story
    given_up = truth.force_released or truth.known().force_released
    if truth.record is None and not truth.released and not given_up:
        # The journal was lost with the object gone already: what is here is an orphan, and nothing is done to it.
        assert (truth.snapshots, truth.task) == (began.snapshots, began.task), story
        return
    assert (truth.task, truth.container, truth.sandbox) == (None, None, None), story
    if not truth.released:
        assert given_up, story
        assert truth.written is None or truth.written in kept | {s.lineage for s in truth.snapshots.values()}, story
        return
    assert truth.record is None, story
    assert truth.snapshots == {}, story
    if not purging:
        assert truth.written is None or truth.written in kept, story
        assert kept >= {archive.lineage for archive in began.archives.values()}, story
    elif any("PurgeArchives" in line for line in story):
        assert kept == set(), story


def test_a_start_that_was_cut_off_does_not_hold_up_what_is_to_run_instead() -> None:
    """The engine changes no container that has a task, not even one whose program never ran."""
    life = Life(newborn(Draw(1)))
    runtime = life.truth.runtime
    assert runtime is not None
    plain = RuntimeSpec(image=IMAGES[0], restart_policy=RestartPolicy.NEVER, restore=Restore(policy=RestorePolicy.NONE))
    life.become(edited(life.truth, plain), "the plainest spec")
    for _ in range(ROUNDS_TO_CONVERGE):
        made = life.look_and_plan()
        assert made is not None
        if any(isinstance(step, StartTask) for step in made.steps):
            break
        for step in made.steps:
            life.become(apply(step, life.truth, life.now), repr(step))
    (start,) = (step for step in made.steps if isinstance(step, StartTask))
    created = next(
        stage
        for stage in effects(start, life.truth, life.now)
        if stage.task is not None and stage.task.state is TaskState.CREATED
    )
    life.become(edited(created, edit(plain, args=("other",))), "killed, and edited meanwhile")
    for _ in range(ROUNDS_TO_CONVERGE):
        if not life.calm_round():
            break
    assert life.truth.container is not None
    assert life.truth.container.spec_hash == spec_mark(edit(plain, args=("other",)))
    assert life.truth.task is not None
    assert life.truth.task.state is TaskState.RUNNING


# ---------------------------------------------------------------------------------------------- health


def healthy_world(draw: Draw) -> World:
    """A runtime that is as desired, with whatever may differ between two of those."""
    truth = newborn(draw)
    runtime, ref = truth.runtime, truth.ref
    assert runtime is not None
    spec, n = runtime.spec, draw.of((1, 2, 7))
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
    phase = Phase.RUNNING if alive else Phase.REMOVED if not running and not stopped else Phase.STOPPED
    record = Record(
        ref=ref,
        newest_n=n,
        workspace=workspace if running or draw.chance(0.8) else None,
        operations=draw.of((1, 50)),
        numbered_from=NOW - 1e6,
        phase=phase,
        started_at=draw.moment() if alive else draw.maybe(0.5, NOW - 100),
        stopped_at=draw.maybe(0.5, NOW - 200),
        running=alive,
        restarts=draw.of((0, 3)),
        failures_in_row=draw.of((0, 2)),
        last_exit=draw.exit() if halted else draw.maybe(0.5, draw.exit()),
        halted=Halted(draw.of((Reason.COMPLETED, Reason.EXITED)), mark) if halted else None,
    )
    facts = SnapshotFacts(workspace.key, n, image.chain_id, image.name, image.digest, gate)
    limits = mark if draw.chance(0.7) else f"{mark.partition('-')[0]}-{'0' * 8}"
    container = ContainerFacts(ref.container_id, workspace.key, limits)
    with_container = alive or ((halted or stopped) and draw.chance(0.7))
    with_sandbox = alive or ((halted or stopped) and draw.chance(0.7))
    unasked = (Absent(), Unknown("not asked"))
    observed = Observed(
        container=Present(container) if with_container else Absent(),
        task=Present(TaskFacts(TaskState.RUNNING, 42)) if alive else Absent(),
        snapshots=Present((facts,) if record.workspace is not None else ()),
        sandbox=Present(SandboxFacts("/run/netns/x")) if with_sandbox else Absent(),
        image=draw.of((*unasked, Present(draw.image()))),
        wanted_image=draw.of((*unasked, Present(draw.image()))),
        ledger=draw.of((*unasked, Present(LedgerFacts()), Present(draw.ledger()))),
    )
    shown = edit(runtime, status=RuntimeStatus(phase=phase, snapshot_key=draw.maybe(0.5, workspace.key)))
    freeze = draw.maybe(0.1, Freeze(draw.of((Reason.MASS_ABSENCE, Reason.IDENTITY_CHANGED)), "look first"))
    past = draw.maybe(0.2, replace(draw.failure(), retry_at=NOW - 1))
    return World(ref, Wanted(shown), observed, record, past, freeze)


@given(st.integers(0, 100_000))
def test_nothing_is_done_to_what_is_as_desired(seed: int) -> None:
    world = healthy_world(Draw(seed))
    made = plan(world, NOW)
    assert made.steps == (), world
    assert made.waiting is None, world
    assert made.status is not None
    assert made.status.phase == world.record.phase
    assert plan(world, NOW) == made
    later = plan(world, NOW + 3600)
    assert later.steps == (), world
    assert later.wake_at is None, world
