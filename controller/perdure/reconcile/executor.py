"""Carries out steps through the ports; which step is done where. Called by the reconciler with one plan at a time.

Each step may run again after a crash; none trusts that an earlier one happened. Raises `PortError` when a step could
not be done; nothing is undone, the next look finds where things stand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from perdure.plan.steps import (
    AdoptSnapshot,
    Answer,
    ArchiveWorkspace,
    Begin,
    CloseForgotten,
    CreateContainer,
    CreateSandbox,
    Dispose,
    EnsureImage,
    Finish,
    Forget,
    KeepWorkspace,
    KillTask,
    LeadOutPorts,
    Note,
    PrepareWorkspace,
    PurgeArchives,
    ReapTask,
    RecordPutAway,
    RemoveContainer,
    RemoveSandbox,
    RemoveWorkspace,
    RepairNetwork,
    RestoreWorkspace,
    StartTask,
    Step,
    StopTask,
)
from perdure.plan.uptime import Uptime
from perdure.plan.world import World
from perdure.reconcile.data_steps import DataSteps
from perdure.reconcile.hands import Hands, Place
from perdure.reconcile.network_steps import NetworkSteps
from perdure.reconcile.operation_steps import OperationSteps
from perdure.reconcile.ports.errors import StaleFence
from perdure.reconcile.task_steps import Clocks, TaskSteps
from perdure.reconcile.uptime import uptime


class Executor:
    """One per agent. `now`: seconds since the epoch."""

    def __init__(
        self,
        hands: Hands,
        place: Place,
        *,
        now: Callable[[], float],
        concurrent_starts: int,
        uptime: Callable[[], Uptime] = uptime,
    ) -> None:
        self._hands = hands
        self._operations = OperationSteps(hands, place, now)
        self._data = DataSteps(hands, place)
        self._networks = NetworkSteps(hands, place)
        self._tasks = TaskSteps(hands, self._networks, Clocks(now, uptime), concurrent_starts)

    async def run(self, step: Step, world: World) -> None:
        """Do one step. Raises `PortError`."""
        try:
            await self._run(step, world)
        except StaleFence:
            self._hands.leases.drop(world.ref.uid)
            raise

    async def _run(self, step: Step, world: World) -> None:
        ref = world.ref
        match step:
            case Begin():
                await self._operations.begin(step, world)
            case Finish():
                await self._operations.finish(step, ref)
            case Note():
                await self._operations.note(step, ref)
            case Answer():
                await self._operations.answer(step, world)
            case RecordPutAway(put_away):
                await self._data.record_put_away(put_away, ref)
            case CloseForgotten():
                await self._operations.close_forgotten(step, ref)
            case KeepWorkspace():
                await self._data.keep_workspace(step, ref)
            case Dispose():
                await self._operations.dispose(step, world)
            case Forget():
                await self._hands.engine.forget(ref)
                await self._hands.journal.commit(forget=ref.uid)
            case EnsureImage(image, policy):
                await self._hands.engine.ensure_image(image, policy)
            case PrepareWorkspace():
                await self._data.prepare(step, ref)
            case AdoptSnapshot():
                await self._data.adopt(step, ref)
            case RestoreWorkspace():
                await self._data.restore(step, ref)
            case CreateSandbox(pid):
                await self._networks.create(world, pid)
            case RepairNetwork(why):
                await self._networks.repair(world, why)
            case LeadOutPorts(kept):
                await self._networks.lead_out(world, kept)
            case RemoveSandbox():
                await self._hands.sandbox.remove(ref)
            case CreateContainer(_, image, mark):
                await self._tasks.create_container(world, image, mark)
            case StartTask():
                await self._tasks.start(step, world)
            case StopTask():
                await self._tasks.stop(step, ref)
            case KillTask(container):
                await self._tasks.kill(container, ref)
            case ReapTask():
                await self._tasks.reap(step, world)
            case RemoveContainer(container):
                await self._hands.engine.remove_container(container)
            case ArchiveWorkspace():
                await self._data.archive(ref)
            case RemoveWorkspace():
                await self._data.remove_workspace(step, ref)
            case PurgeArchives():
                await self._data.purge_archives(ref)
            case never:
                assert_never(never)
