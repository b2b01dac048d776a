"""One look at one runtime: what is wanted, what the engine and the sandbox show, and, when a decision is due, what the
images and the ledger say. Called by the reconciler before each plan; changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from perdure.api.names import NodeId, RuntimeRef, SnapshotKey, Uid
from perdure.api.runtime import DeletionPolicy, DesiredState, Restore, Runtime
from perdure.plan.certainty import Absent, Certain, Present, Unknown
from perdure.plan.deletion import given_up_in_the_ledger
from perdure.plan.health import NOTHING_PROBED, ProbeFacts
from perdure.plan.uptime import Uptime
from perdure.plan.world import (
    Desired,
    Gone,
    ImageFacts,
    LedgerFacts,
    Observed,
    Op,
    Record,
    TaskState,
    Terminating,
    Unseen,
    Wanted,
    World,
)
from perdure.reconcile.absences import Absences
from perdure.reconcile.guards import Guards
from perdure.reconcile.ports.cluster import Cluster, Objects
from perdure.reconcile.ports.engine import Engine, EngineView
from perdure.reconcile.ports.journal import Journal
from perdure.reconcile.ports.ledger import AgentLedger
from perdure.reconcile.ports.sandbox import Sandbox
from perdure.reconcile.retries import Retries
from perdure.reconcile.uptime import uptime

NOT_ASKED = Unknown("not asked: no decision depends on it now")


@dataclass(frozen=True, slots=True)
class Eyes:
    """The ports that are looked through."""

    engine: Engine
    sandbox: Sandbox
    ledger: AgentLedger
    journal: Journal
    cluster: Cluster
    objects: Objects
    probes: Callable[[Uid, int], ProbeFacts]
    """What the probes of this task (its pid) have come to."""


class Observer:
    """Sees the runtimes that are bound to one node."""

    def __init__(
        self,
        eyes: Eyes,
        node: NodeId,
        guards: Guards,
        retries: Retries,
        absences: Absences,
        uptime: Callable[[], Uptime] = uptime,
    ) -> None:
        self._eyes = eyes
        self._node = node
        self._absences = absences
        self._guards = guards
        self._retries = retries
        self._uptime = uptime

    async def look(self, uid: Uid) -> World | None:
        """The planner's input, or None when this node has nothing to do with the uid."""
        record = self._eyes.journal.record(uid)
        runtime = self._eyes.objects.get(uid)
        if runtime is None or runtime.node_id is None:
            if record is None:
                self._absences.over(uid)
                return None
            desired = await self._ask_for(record)
        elif runtime.node_id != self._node or not runtime.protected:
            return None
        else:
            desired = _desired(runtime)
        live = desired.runtime if isinstance(desired, Wanted | Terminating) else None
        recorded = record is not None
        if record is None:
            if live is None or live.namespace_uid is None:
                return None
            # What the labels claim, until the planner has held it against the ledger: nothing but looks come before.
            record = Record(ref=live.ref(live.namespace_uid))
        to_see = not isinstance(desired, Unseen) and not await self._is_undecided(record, desired)
        observed = await self._observe(record.ref, record, desired) if to_see else Observed()
        generation = live.generation if live is not None else 0
        return World(
            ref=record.ref,
            desired=desired,
            observed=observed,
            record=record,
            recorded=recorded,
            failure=self._retries.failure(uid, generation),
            freeze=self._guards.freeze,
            uptime=self._uptime(),
        )

    async def _is_undecided(self, record: Record, desired: Desired) -> bool:
        """Whether nothing follows yet from its object's absence, which may be an accident of the API server; it is none where
        the ledger has it that a person gave the object up."""
        if not isinstance(desired, Gone) or desired.confirmed or record.deletion_seen or record.force_released:
            return False
        return not given_up_in_the_ledger(await self._eyes.ledger.facts(record.ref, Restore()))

    async def _ask_for(self, record: Record) -> Desired:
        """The cache has no object of ours for a life that is on record: only the API server can say what that means."""
        match await self._eyes.cluster.look_up(record.ref):
            case Present(it=runtime):
                self._absences.over(record.ref.uid)
                if runtime.node_id not in (None, self._node):
                    return Unseen(f"bound to node {runtime.node_id} by now")
                if runtime.node_id is None:
                    return Unseen("its binding labels are missing; the controller publishes them again")
                self._eyes.objects.put(runtime)
                return _desired(runtime)
            case Absent():
                return Gone(confirmed=self._absences.confirmed(record.ref.uid))
            case Unknown(why):
                return Unseen(why)

    async def _observe(self, ref: RuntimeRef, record: Record, desired: Desired) -> Observed:
        view, sandbox = await asyncio.gather(
            self._eyes.engine.observe(ref, _key_of_interest(record, desired)), self._eyes.sandbox.observe(ref)
        )
        (image, wanted_image), ledger = await asyncio.gather(
            self._images(record, desired, view), self._ledger(ref, record, desired, view)
        )
        return Observed(
            container=view.container,
            task=view.task,
            snapshots=view.snapshots,
            sandbox=sandbox,
            image=image,
            wanted_image=wanted_image,
            ledger=ledger,
            probes=self._probes(ref.uid, view),
        )

    def _probes(self, uid: Uid, view: EngineView) -> ProbeFacts:
        return self._eyes.probes(uid, view.task.it.pid) if isinstance(view.task, Present) else NOTHING_PROBED

    async def _images(
        self, record: Record, desired: Desired, view: EngineView
    ) -> tuple[Certain[ImageFacts], Certain[ImageFacts]]:
        """Images matter when a container or a task is to be made, or a running one to be stopped with its own signal."""
        if not isinstance(desired, Wanted | Terminating):
            return NOT_ASKED, NOT_ASKED
        spec, workspace = desired.runtime.spec, record.workspace
        healthy = _runs(view) and isinstance(view.container, Present)
        to_run = isinstance(desired, Wanted) and spec.desired_state is DesiredState.RUNNING
        name = workspace.image if workspace is not None else spec.image
        if workspace is not None and workspace.image != spec.image and to_run:
            image, wanted = await asyncio.gather(self._eyes.engine.image(name), self._eyes.engine.image(spec.image))
            return image, wanted
        to_be_ended = bool(record.health.ended_for)
        if (to_run and (not healthy or to_be_ended)) or (not to_run and _runs(view)):
            return await self._eyes.engine.image(name), NOT_ASKED
        return NOT_ASKED, NOT_ASKED

    async def _ledger(
        self, ref: RuntimeRef, record: Record, desired: Desired, view: EngineView
    ) -> Certain[LedgerFacts]:
        """The ledger is asked when a decision about data is due, never on the way of a healthy runtime."""
        workspace = record.workspace
        undecided = workspace is None or not workspace.prepared or workspace.removal_announced
        match desired:
            case Wanted(runtime):
                to_run = runtime.spec.desired_state is DesiredState.RUNNING
                # A runtime of which nothing is on record may have been put away before the journal was lost.
                lost = workspace is None and (to_run or record.phase is None or _half_restored(view))
                due = lost or (workspace is not None and workspace.removal_announced)
                restore = runtime.spec.restore
            case Terminating(runtime):
                due = not record.released and (undecided or _purging(record, runtime))
                restore = runtime.spec.restore
            case _:
                due = not record.released and not record.force_released
                restore = Restore()
        return await self._eyes.ledger.facts(ref, restore) if due else NOT_ASKED


def _desired(runtime: Runtime) -> Desired:
    return Terminating(runtime) if runtime.terminating else Wanted(runtime)


def _purging(record: Record, runtime: Runtime | None) -> bool:
    begun = record.operation is not None and record.operation.op is Op.PURGE
    return begun or (runtime is not None and runtime.spec.deletion_policy is DeletionPolicy.PURGE)


def _key_of_interest(record: Record, desired: Desired) -> SnapshotKey | None:
    """A live runtime has one snapshot; for one that is going every snapshot with its uid counts."""
    if record.workspace is None or not isinstance(desired, Wanted):
        return None
    return record.workspace.key


def _half_restored(view: EngineView) -> bool:
    return isinstance(view.snapshots, Present) and any(snapshot.gate is not None for snapshot in view.snapshots.it)


def _runs(view: EngineView) -> bool:
    return isinstance(view.task, Present) and view.task.it.state is TaskState.RUNNING
