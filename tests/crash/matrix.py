"""Runs a story to its end, whatever is killed or fails on the way, and says what the end looks like."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.crash.clock import JumpingLoop
from tests.crash.plant import READS, Agency, Call, Killed, Survivors, When, may_fail
from tests.crash.promises import Broken, Promises

from perdure.api.names import Identity, Uid

PATIENCE_SECONDS = 900.0
QUIET_SECONDS = 20.0
LOOK_SECONDS = 0.25
STEADY_LOOKS = 4
ABOUT_ARCHIVES = frozenset({"archives listed", "catalogue", "store"})
"""How many were made on the way, or were listed by then."""

Act = Callable[[Survivors], None]
Goal = Callable[[Survivors], bool]


@dataclass(frozen=True, slots=True)
class Stage:
    """Something is done, then the goal is waited for."""

    act: Act
    goal: Goal
    during: str | None = None
    """A call: the moment at which `interrupt` is done, once."""
    when: When | None = None
    """None: whichever side of the call comes first."""
    interrupt: Act | None = None
    restarts: bool = False
    """The process is ended before the act and begun after it."""


@dataclass(frozen=True, slots=True)
class Story:
    name: str
    stages: Sequence[Stage]
    tried_from: int = 0
    """The stages before this one are disturbed in another story."""
    purged: bool = False
    """The story ends with a purge: nothing of the data may be left."""
    given_up: bool = False
    """A person gave data up that is not there any more."""
    varies: frozenset[str] = frozenset()
    """Parts of the summary of its end that depend on the instant of the disturbance; the rest is compared."""
    network: bool = False
    """On a node that has a network."""


@dataclass(slots=True)
class End:
    """How a case ended: comparable, without ids and times."""

    calls: list[Call]
    tried_from: int
    """Index of the first call of the stages that are disturbed in this story."""
    summary: dict[str, Any] = field(default_factory=dict)


class DoesNotConverge(AssertionError):
    pass


def tell(story: Story, *, kill_at: Sequence[int] = (), fail_at: int | None = None) -> End:
    """Run the story on a loop of its own, check the promises, and return the end."""
    loop = JumpingLoop()
    # A killed process's tasks are abandoned with `Killed` in them: that is what was asked for.
    loop.set_exception_handler(lambda _, context: None)
    try:
        return loop.run_until_complete(_tell(loop, story, frozenset(kill_at), fail_at))
    finally:
        loop.close()


async def _tell(loop: JumpingLoop, story: Story, kill_at: frozenset[int], fail_at: int | None) -> End:
    survivors = Survivors(loop.time, story.network, kill_at=kill_at, fail_at=fail_at)
    promises = Promises(survivors)
    teller = _Teller(survivors)
    try:
        tried_from = await _play(story, survivors, teller, promises)
    finally:
        await teller.end()
    if survivors.defects:
        raise Broken("a handler crashed:\n" + survivors.defects[0])
    identities: frozenset[Identity] = frozenset()
    if story.purged:
        identities = frozenset(entry.ref.identity for entry in survivors.tables.runtimes.values())
        if survivors.store.archives or survivors.machine.snapshots:
            raise Broken("a purge left something behind")
    lost: frozenset[Uid] = frozenset(survivors.machine.written) if story.given_up else frozenset()
    promises.check_end(identities, lost)
    told = {key: value for key, value in summary(survivors).items() if key not in story.varies}
    return End(survivors.calls, tried_from, told)


async def _play(story: Story, survivors: Survivors, teller: _Teller, promises: Promises) -> int:
    tried_from = 0
    for n, stage in enumerate(story.stages):
        if n == story.tried_from:
            tried_from = len(survivors.calls)
        await teller.play(stage, f"{story.name}, stage {n}")
        promises.raise_broken()
    await teller.settle()
    survivors.kill_at, survivors.fail_at = frozenset(), None
    before = len(survivors.calls)
    await teller.wait(QUIET_SECONDS)
    writes = [call for call in survivors.calls[before:] if call.name not in READS]
    if writes:
        raise Broken(f"P5: at rest, these calls were still made: {[call.name for call in writes]}")
    return tried_from


class _Teller:
    """Keeps a process running: after each kill the next one is begun over what survived."""

    def __init__(self, survivors: Survivors) -> None:
        self._survivors = survivors
        self._process = self._begin()

    async def play(self, stage: Stage, where: str) -> None:
        survivors = self._survivors
        if stage.interrupt is not None:
            survivors.interfere = _once(survivors, stage)
        if stage.restarts:
            await self._process.end()
            stage.act(survivors)
            self._process = self._begin()
        else:
            stage.act(survivors)
        deadline, steady = survivors.clock() + PATIENCE_SECONDS, 0
        while steady < STEADY_LOOKS:
            await self.wait(LOOK_SECONDS)
            reached = not self._process.busy() and stage.goal(survivors)
            steady = steady + 1 if reached else 0
            if survivors.clock() > deadline:
                raise DoesNotConverge(f"{where}: the goal is not reached; {summary(survivors)}; {_told(survivors)}")
        survivors.interfere = None

    async def settle(self) -> None:
        """Until nothing is due any more: then whatever is still written is written for nothing."""
        deadline, steady = self._survivors.clock() + PATIENCE_SECONDS, 0
        while steady < STEADY_LOOKS:
            before = self._process
            await self.wait(LOOK_SECONDS)
            at_rest = before is self._process and not before.busy() and not before.waits()
            steady = steady + 1 if at_rest else 0
            if self._survivors.clock() > deadline:
                raise DoesNotConverge(f"something is tried for ever; {_told(self._survivors)}")

    async def wait(self, seconds: float) -> None:
        """Let time pass; replace the process when it is killed."""
        until = self._survivors.clock() + seconds
        while (left := until - self._survivors.clock()) > 0:
            try:
                await asyncio.wait_for(self._process.died.wait(), left)
            except TimeoutError:
                return
            await self._process.end()
            self._process = self._begin()

    async def end(self) -> None:
        await self._process.end()

    def _begin(self) -> Agency:
        process = Agency(self._survivors)
        self._survivors.process = process
        process.begin()
        return process


def _once(survivors: Survivors, stage: Stage) -> Callable[[Call], None]:
    done = False

    def interfere(call: Call) -> None:
        nonlocal done
        if not done and stage.interrupt is not None and call.name == stage.during and stage.when in (None, call.when):
            done = True
            stage.interrupt(survivors)

    return interfere


def kill_points(end: End) -> list[int]:
    """Before and after everything that leaves a trace."""
    return [n for n, call in enumerate(end.calls) if n >= end.tried_from and call.name not in READS]


def fail_points(end: End) -> list[int]:
    """Every call that may fail."""
    return [n for n, call in enumerate(end.calls) if n >= end.tried_from and may_fail(call)]


def summary(survivors: Survivors) -> dict[str, Any]:
    """The end of a case: what people and the next process see, by order of creation instead of by ids."""
    order = {uid: n for n, uid in enumerate(survivors.tables.runtimes)}
    machine = survivors.machine
    return {
        "objects": [
            (
                (r.name, order.get(r.uid), r.terminating, r.status.phase, r.status.restarts, r.finalizers),
                (r.status.address, r.status.ports, r.host_ports),
                [(c.type, c.status, c.reason) for c in r.status.conditions],
            )
            for r in survivors.cluster.runtimes.values()
        ],
        "archives listed": sorted(facts.object_name for facts in survivors.cluster.archives.values()),
        "lives": [
            (entry.state, entry.released or entry.snapshot_key is not None)
            for entry in survivors.tables.runtimes.values()
        ],
        "catalogue": sorted(entry.state for entry in survivors.tables.archives.values() if entry.state != "writing"),
        "store": sum(1 for stored in survivors.store.archives.values() if stored.complete),
        "snapshots": sorted((order.get(s.ref.uid), s.facts.gate) for s in machine.snapshots.values()),
        "tasks": [task.facts.state for task in machine.tasks.values()],
        "containers": len(machine.containers),
        "sandboxes": [
            (order.get(uid), facts.mode, facts.attached, facts.addresses, facts.damage, facts.ports, facts.policy)
            for uid, facts in survivors.sandboxes.made.items()
        ],
        "ports": sorted(
            (at.number, at.transport, order.get(entry.uid), entry.reservation.name, entry.published)
            for (_, at), entry in survivors.tables.ports.items()
        ),
        "records": [
            (r.phase, r.operation is None, r.workspace is not None, r.running, r.restarts, r.released, r.host_ports)
            for r in survivors.disk.records.values()
        ],
    }


def _told(survivors: Survivors) -> str:
    """What the objects say that they wait for."""
    return "; ".join(
        f"{runtime.name} {runtime.status.phase}: {condition.type} {condition.reason} {condition.message}"
        for runtime in survivors.cluster.runtimes.values()
        for condition in runtime.status.conditions
        if condition.status != "True"
    )


__all__ = ["DoesNotConverge", "End", "Killed", "Stage", "Story", "fail_points", "kill_points", "summary", "tell"]
