"""One of the processes that compete for clean-ups: `python -m tests.integration.ledger.contest.holder`, see `play`.

What decides, takes leases, writes rows and removes is the product's own: `plan`, `Executor`, `LeaseKeeper`, `Outbox`,
`Guards`, `FileJournal`, `PostgresAgentLedger`. Engine and store are the witness's. Its wall clock jumps.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import structlog
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.fakes.sandbox import FakeSandbox, SandboxState
from tests.integration.ledger.contest.parts import (
    NotingLedger,
    QuietProbe,
    SleepyClock,
    WitnessedArchives,
    WitnessedEngine,
    WrongClock,
)
from tests.integration.ledger.contest.words import (
    CHAIN,
    DIGEST,
    EFFECT_SECONDS,
    IMAGE,
    TTL_SECONDS,
    Again,
    Answer,
    AskCandidates,
    AskLife,
    Life,
    Lives,
    NoteStopped,
    ask,
)

from perdure.api import names
from perdure.api.names import (
    ChainId,
    InstallationId,
    Kind,
    NamespaceUid,
    NodeId,
    NodeName,
    RuntimeRef,
    Uid,
)
from perdure.api.phases import Phase
from perdure.api.runtime import parse_runtime
from perdure.journal.file import FileJournal
from perdure.journal.lock import NodeLock
from perdure.ledger.database import Database
from perdure.plan.certainty import Absent, Present
from perdure.plan.planner import plan
from perdure.plan.steps import Begin, Finish, Note
from perdure.plan.uptime import Uptime
from perdure.plan.world import (
    Code,
    ImageFacts,
    Observed,
    Outcome,
    Record,
    SnapshotFacts,
    Wanted,
    Workspace,
    World,
)
from perdure.reconcile.executor import Executor
from perdure.reconcile.guards import Guards
from perdure.reconcile.hands import Hands, Place
from perdure.reconcile.leases import LeaseKeeper, LeaseTimes
from perdure.reconcile.outbox import Outbox
from perdure.reconcile.ports.errors import PortError

WORKERS = 8
ROUNDS = 16
"""More than a clean-up has steps."""
BOOT = "boot"
REST_SECONDS = 0.05


class Holder:
    """`sleepy`: its monotonic clock does not go on in a pause."""

    def __init__(self, socket: Path, state: Path, node: NodeId, database: Database, seed: int, *, sleepy: bool) -> None:
        self._socket = socket
        self._node = node
        self._draw = random.Random(seed)
        monotonic = SleepyClock() if sleepy else time.monotonic
        self._clock = WrongClock(self._draw)
        self._journal = FileJournal.open(state)
        self._ledger = NotingLedger(database, node, monotonic)
        self._guards = Guards(self._journal)
        self._keeper = LeaseKeeper(self._ledger, self._guards, monotonic, LeaseTimes(TTL_SECONDS, EFFECT_SECONDS))
        self._outbox = Outbox(self._journal, self._ledger, NodeName(node))
        self._busy: set[str] = set()
        """What one of the workers has in hand: a process looks at one key once at a time."""
        cluster = FakeCluster(ClusterState(), node)
        hands = Hands(
            engine=WitnessedEngine(socket, self._journal, self._ledger, node),
            sandbox=FakeSandbox(SandboxState()),
            archives=WitnessedArchives(socket, self._draw),
            journal=self._journal,
            ledger=self._ledger,
            cluster=cluster,
            leases=self._keeper,
            outbox=self._outbox,
            probe=QuietProbe(),
        )
        place = Place(InstallationId("contest"), NodeName(node), node)
        self._executor = Executor(hands, place, now=self._clock, concurrent_starts=1)

    async def run(self) -> None:
        """Until nothing is left to be done by anybody. Raises what is a defect."""
        await self._guards.check_ledger(await self._ledger.identity())
        assert self._guards.freeze is None, self._guards.freeze
        jumping, sending = asyncio.create_task(self._clock.jump_on_and_on()), asyncio.create_task(self._outbox.run())
        async with asyncio.TaskGroup() as workers:
            for _ in range(WORKERS):
                workers.create_task(self._work())
        await self._outbox.flush()
        for task in (jumping, sending):
            task.cancel()
        await asyncio.gather(jumping, sending, return_exceptions=True)
        await self._journal.close()

    async def _work(self) -> None:
        while True:
            for uid in [uid for uid, record in self._journal.records().items() if record.operation is not None]:
                await self._once_at_a_time(await ask(self._socket, AskLife(uid), Life))
            offered = await ask(self._socket, AskCandidates(self._node, self._clock.error), Lives)
            if offered.over and not any(record.operation for record in self._journal.records().values()):
                return
            for life in self._draw.sample(offered.lives, len(offered.lives)):
                await self._once_at_a_time(life)
            await asyncio.sleep(REST_SECONDS)

    async def _once_at_a_time(self, life: Life) -> None:
        if life.uid in self._busy:
            return
        self._busy.add(life.uid)
        try:
            await self._handle(life)
        except PortError as error:
            structlog.get_logger().info("given_up_for_now", uid=life.uid, error=str(error))
        finally:
            self._busy.discard(life.uid)

    async def _handle(self, life: Life) -> None:
        """Whether it is due is asked first, without a lease; everything else is done on what is seen under one."""
        uid = Uid(life.uid)
        if life.stopped_at is None and life.there:
            await self._note_stopped(life)
            return
        known = self._journal.record(uid)
        if (known is None or known.operation is None) and not plan(
            self._world(life, self._record(life)), self._clock()
        ).steps:
            return
        for _ in range(ROUNDS):
            await self._keeper.hold(uid)
            life = await ask(self._socket, AskLife(uid), Life)
            record = self._record(life)
            if record.operation is None and not life.there:
                break  # somebody else was faster
            if record is not self._journal.record(uid):
                await self._journal.commit(put=record)
            if not await self._step(life, record):
                break
        done = self._journal.record(uid)
        if done is not None and done.operation is None:
            await self._keeper.release(uid)
            if done.put_away is not None and not life.there:
                await ask(self._socket, Again(life.uid, life.n), Answer)

    async def _step(self, life: Life, record: Record) -> bool:
        """One round; whether there may be more to do."""
        world = self._world(life, record)
        if isinstance(world.observed.snapshots, Present) and not world.observed.snapshots.it and record.operation:
            workspace = record.workspace
            if workspace is not None and workspace.archived is None:
                return await self._somebody_else_did_it(world, workspace)
        made = plan(world, self._clock())
        if not made.steps:
            assert made.settled, f"{life}: {made.waiting}"
            return False
        for step in sorted(made.steps, key=lambda step: not isinstance(step, Begin | Note)):
            await self._executor.run(step, world)
        return True

    async def _somebody_else_did_it(self, world: World, workspace: Workspace) -> bool:
        archives = await self._ledger.purgeable(world.ref)
        assert workspace.key in {archive.snapshot_key for archive in archives}, f"{workspace.key} is in no archive"
        replaced = replace(self._journal.record(world.ref.uid) or world.record, workspace=None)
        await self._journal.commit(put=replaced)
        await self._executor.run(
            Finish(Outcome.SUPERSEDED, Phase.REMOVED, "another holder cleaned it up", code=Code.REPLAY_NO_OP), world
        )
        return False

    async def _note_stopped(self, life: Life) -> None:
        boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        await ask(self._socket, NoteStopped(life.uid, life.n, self._clock(), boot), Answer)

    # ------------------------------------------------------------------------------------------ what is seen

    def _record(self, life: Life) -> Record:
        """Its own as long as something is open or it is of this very generation; else one made from what is seen."""
        of = ref_of(life.uid)
        key = of.snapshot_key(life.n)
        mine = self._journal.record(of.uid)
        if mine is not None and mine.operation is not None:
            return mine
        if mine is not None and not life.there:
            return mine
        if mine is not None and mine.workspace is not None and mine.workspace.key == key:
            return mine
        workspace = Workspace(key, life.n, IMAGE, DIGEST, ChainId(CHAIN), prepared=True, ever_started=True)
        return replace(
            mine or Record(ref=of),
            newest_n=life.n,
            workspace=workspace,
            phase=Phase.STOPPED,
            stopped_at=life.stopped_at,
            stopped_up=Uptime(BOOT, life.stopped_boot or 0.0),
            put_away=None,
        )

    def _world(self, life: Life, record: Record) -> World:
        of = ref_of(life.uid)
        there = life.there and record.workspace is not None and record.workspace.key == of.snapshot_key(life.n)
        facts = SnapshotFacts(of.snapshot_key(life.n), life.n, ChainId(CHAIN), IMAGE, DIGEST, None)
        observed = Observed(
            container=Absent(),
            task=Absent(),
            snapshots=Present((facts,) if there else ()),
            sandbox=Absent(),
            image=Present(ImageFacts(IMAGE, DIGEST, ChainId(CHAIN))),
        )
        runtime = parse_runtime(
            {
                "kind": of.kind,
                "metadata": {
                    "namespace": of.namespace,
                    "name": of.name,
                    "uid": of.uid,
                    "labels": {names.LABEL_NODE_ID: self._node, names.LABEL_NAMESPACE_UID: of.namespace_uid},
                    "finalizers": [names.FINALIZER],
                },
                "spec": {"image": IMAGE, "desiredState": "Stopped", "stoppedTTL": life.ttl},
            }
        )
        uptime = Uptime(BOOT, time.clock_gettime(time.CLOCK_BOOTTIME))
        return World(of, Wanted(runtime), observed, record, uptime=uptime)


def ref_of(uid: str) -> RuntimeRef:
    return RuntimeRef(Kind.BOT, "contest", uid, Uid(uid), NamespaceUid("contest"))


async def compete(options: argparse.Namespace) -> None:
    with NodeLock(options.state, options.state, "contest"):
        async with Database(options.url) as database:
            holder = Holder(
                options.socket, options.state, NodeId(options.node), database, options.seed, sleepy=options.sleepy
            )
            await holder.run()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--node", required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--sleepy", action="store_true")
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    asyncio.run(compete(parser.parse_args(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
