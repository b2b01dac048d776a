"""Steps on containers and their main processes. What the engine would forget is journalled before it may."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from perdure.api.conditions import Reason
from perdure.api.names import ContainerId, RuntimeRef
from perdure.plan.certainty import Present
from perdure.plan.health import HealthEvent, HealthKind
from perdure.plan.steps import ReapTask, StartTask, StopTask
from perdure.plan.uptime import Uptime
from perdure.plan.world import Exit, ImageFacts, StopAsked, World
from perdure.reconcile.environment import resolve
from perdure.reconcile.hands import Hands, live, workspace_of
from perdure.reconcile.health_rows import tell, told
from perdure.reconcile.namespaces import RecentNamespaces
from perdure.reconcile.network_steps import NetworkSteps
from perdure.reconcile.ports.cluster import NamespaceFacts
from perdure.reconcile.ports.engine import ContainerPlan
from perdure.reconcile.ports.errors import EngineRefused, PortError, SourceError

STOP_IN_PLACE_SECONDS = 1.0
"""How long a stop is waited for at once. What takes longer is looked at again at its end, or when its grace period is
over: whoever ignores the signal for a day keeps no worker from the others."""
KILL_WAIT_SECONDS = 10.0
"""How long SIGKILL may take: a process in uninterruptible sleep must not hang the agent."""
PLACE_SECONDS = 2.0
"""How long a start may wait for its network in the place of another one."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Clocks:
    now: Callable[[], float]
    """Seconds since the epoch."""
    uptime: Callable[[], Uptime]


class TaskSteps:
    """`concurrent_starts` bounds how many tasks are started at once: more would only make each of them slower."""

    def __init__(self, hands: Hands, networks: NetworkSteps, clocks: Clocks, concurrent_starts: int) -> None:
        self._hands = hands
        self._networks = networks
        self._now = clocks.now
        self._uptime = clocks.uptime
        self._starts = asyncio.Semaphore(concurrent_starts)
        self._namespaces = RecentNamespaces(hands.cluster.namespace)

    async def create_container(self, world: World, image: ImageFacts, mark: str) -> None:
        runtime = live(world)
        record = self._hands.record(world.ref)
        env, namespace, sandbox = await asyncio.gather(
            resolve(runtime, self._hands.cluster),
            self._namespace(world.ref),
            self._hands.sandbox.observe(world.ref),
        )
        if not isinstance(sandbox, Present):
            raise PortError(f"the network namespace of {world.ref} is not there", reason=Reason.NETWORK_FAILED)
        await self._hands.engine.create_container(
            ContainerPlan(
                ref=world.ref,
                id=world.ref.container_id,
                key=workspace_of(record).key,
                image=image,
                spec=runtime.spec,
                spec_hash=mark,
                env=env,
                netns=sandbox.it.netns,
                restricted=namespace.enforce == "restricted",
            )
        )

    async def _namespace(self, ref: RuntimeRef) -> NamespaceFacts:
        known = await self._namespaces.get(ref.namespace, uid=ref.namespace_uid)
        if known.uid != ref.namespace_uid:
            raise SourceError(
                f"namespace {ref.namespace} was created anew since {ref} was bound", reason=Reason.NAMESPACE_UNREADABLE
            )
        return known

    async def start(self, step: StartTask, world: World) -> None:
        """That a task was started is journalled before it is: from then on the layer counts as holding data, and an
        archive of it as out of date."""
        ref = world.ref
        if step.refresh is not None:
            await self.create_container(world, step.refresh, step.spec_hash)
        record = self._hands.record(ref)
        workspace = workspace_of(record)
        if not workspace.ever_started or workspace.archived is not None:
            record = replace(record, workspace=replace(workspace, ever_started=True, archived=None))
            await self._hands.journal.commit(put=record)
        async with self._starts:
            await self._hands.engine.start_task(step.container, step.key, lambda: self._network(world))
        started_at, before = self._now(), self._hands.record(ref)
        running = replace(
            before,
            running=True,
            started_at=started_at,
            stopped_at=None,
            next_start_at=None,
            halted=None,
            stop_asked=None,
        )
        # A repetition of a start that is on record already tells nothing new.
        news = () if before.running else (HealthEvent(HealthKind.STARTED),)
        running, rows = told(running, news, started_at)
        await self._hands.journal.commit(put=running, rows=rows)
        tell(self._hands, rows)

    async def _network(self, world: World) -> None:
        """Bring the network in while the task is made. One that takes long gives its place to other starts meanwhile: a
        plugin that hangs delays its own runtime alone."""
        attaching = asyncio.ensure_future(self._networks.attach(world))
        try:
            await asyncio.wait({attaching}, timeout=PLACE_SECONDS)
            if not attaching.done():
                self._starts.release()
                try:
                    await asyncio.wait({attaching})
                finally:
                    await self._starts.acquire()
        finally:
            attaching.cancel()
            await asyncio.wait({attaching})
        attaching.result()

    async def stop(self, step: StopTask, ref: RuntimeRef) -> None:
        """The signal goes out before it is journalled: after a kill in between it is sent again, and never taken for sent."""
        engine = self._hands.engine
        if step.preflight is not None:
            await self._hands.archives.preflight(await engine.usage(step.preflight))
        await engine.signal_task(step.container, step.signal)
        asked = StopAsked(step.pid, self._uptime())
        if await engine.wait_task(step.container, min(step.grace_seconds, STOP_IN_PLACE_SECONDS)):
            return
        await self._hands.journal.commit(put=replace(self._hands.record(ref), stop_asked=asked))
        log.info("stop_asked", runtime=str(ref), uid=ref.uid, signal=step.signal, grace_seconds=step.grace_seconds)

    async def kill(self, container: ContainerId, ref: RuntimeRef) -> None:
        engine = self._hands.engine
        log.info("stop_grace_over", runtime=str(ref), uid=ref.uid)
        await engine.signal_task(container, "SIGKILL")
        if not await engine.wait_task(container, KILL_WAIT_SECONDS):
            raise EngineRefused(
                f"the main process of {ref} is still there {KILL_WAIT_SECONDS:.0f} s after SIGKILL: it hangs in the kernel "
                "(a dead disk or network file system). It is tried again",
                reason=Reason.STOP_TIMED_OUT,
            )

    async def reap(self, step: ReapTask, world: World) -> None:
        """How it ended is journalled before the engine forgets it."""
        ref = world.ref
        record = self._hands.record(ref)
        ended_at = step.exit.at if step.exit is not None else self._now()
        ended = replace(
            record,
            running=False,
            stopped_at=ended_at,
            stopped_up=world.uptime,
            last_exit=step.exit or Exit(None, ended_at),
            failures_in_row=step.failures_in_row,
            next_start_at=step.next_start_at,
            halted=step.halted,
            restarts=step.restarts,
            health=record.health.of_next_task(),
            stop_asked=None,
        )
        ended, rows = told(ended, step.events, ended_at)
        await self._hands.journal.commit(put=ended, rows=rows)
        tell(self._hands, rows)
        await self._hands.engine.delete_task(step.container)
        log.info(
            "main_process_ended",
            runtime=str(ref),
            uid=ref.uid,
            code=step.exit.code if step.exit else None,
            oom=step.exit.oom if step.exit else False,
            restarts=step.restarts,
        )
