"""What the planner may be told: any world at all, however little its parts agree with each other.

Worlds are drawn from a seed, not field by field by hypothesis: that is a hundred times faster, and breadth finds more
here than shrinking would. The failing world is printed whole.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import msgspec
from hypothesis import strategies as st

from perdure.api import names
from perdure.api.conditions import Reason
from perdure.api.names import ChainId, Kind, NamespaceUid, NodeId, NodeName, OperationId, RuntimeRef, Uid
from perdure.api.network import (
    Network,
    NetworkMode,
    NetworkPeer,
    NetworkPolicy,
    PortPolicy,
    PortProtocol,
    RuntimePort,
    write_host_ports,
)
from perdure.api.phases import Phase
from perdure.api.probes import Probe, TcpSocketAction
from perdure.api.request import RequestId
from perdure.api.runtime import (
    DeletionPolicy,
    DesiredState,
    EnvSource,
    EnvVar,
    FieldSelector,
    RestartPolicy,
    Restore,
    RestorePolicy,
    Runtime,
    RuntimeSpec,
    RuntimeStatus,
    Stop,
)
from perdure.plan.certainty import Absent, Certain, Present, Unknown
from perdure.plan.health import NO_HEALTH, NOTHING_PROBED, Health, ProbeFacts, ProbeKind, Verdict
from perdure.plan.planner import plan
from perdure.plan.spec_hash import spec_mark
from perdure.plan.steps import Plan
from perdure.plan.uptime import Uptime
from perdure.plan.world import (
    AnsweredRequest,
    ArchiveFacts,
    Code,
    ContainerFacts,
    Desired,
    Exit,
    Failure,
    Freeze,
    Gone,
    Halted,
    HostPort,
    ImageFacts,
    LedgerFacts,
    Observed,
    Op,
    OpenOperation,
    Outcome,
    PutAway,
    Record,
    SandboxFacts,
    SnapshotFacts,
    Source,
    StopAsked,
    TaskFacts,
    TaskState,
    Terminating,
    Unseen,
    Wanted,
    Workspace,
    World,
)

T = TypeVar("T")

NOW = 1_800_000_000.0
REF = RuntimeRef(Kind.BOT, "agents", "hermes", Uid("uid-1"), NamespaceUid("ns-1"))
NODE = NodeId("node-1")
NODE_NAME = NodeName("node")
KEYS = (REF.snapshot_key(1), REF.snapshot_key(2))
CHAINS = (ChainId("sha256:aa"), ChainId("sha256:bb"))
IMAGES = ("example/image:1", "example/image:2")
WORLDS_PER_EXAMPLE = 10
GAME = RuntimePort(name="game", container_port=7777, protocol=PortProtocol.TCPUDP)
RCON = RuntimePort(name="rcon", container_port=25575, policy=PortPolicy.STATIC, host_port=9000)
MOVED = RuntimePort(name="rcon", container_port=25575, policy=PortPolicy.STATIC, host_port=9001)
PORTS = ((), (), (GAME,), (RCON,), (GAME, RCON), (GAME, MOVED))
"""What a spec may ask for; none more often than each of the others."""
PROBE = Probe(tcp_socket=TcpSocketAction(port=7777))
NUMBERS = ((), (("game", 7000),), (("game", 7000), ("rcon", 9000)), (("game", 7005), ("rcon", 9001)))
"""What an annotation may tell, or a journal have."""


def told(numbers: Mapping[str, int]) -> dict[str, str]:
    """The annotation that tells them."""
    text = write_host_ports(numbers)
    return {names.ANNOTATION_HOST_PORTS: text} if text is not None else {}


class Draw:
    """Draws worlds from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def of(self, values: Sequence[T]) -> T:
        return self._random.choice(values)

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def maybe(self, share: float, value: T) -> T | None:
        return value if self.chance(share) else None

    def certain(self, value: T) -> Certain[T]:
        """Present more often than not: what is there is where things can go wrong."""
        drawn = self._random.random()
        if drawn < 0.6:
            return Present(value)
        return Absent() if drawn < 0.9 else Unknown("the part that owns it did not answer")

    # ------------------------------------------------------------------------------------------ parts

    def moment(self) -> float:
        return self.of((NOW - 10_000, NOW - 700, NOW - 5, NOW, NOW + 1, NOW + 300))

    def image(self) -> ImageFacts:
        return ImageFacts(self.of(IMAGES), "sha256:dd", self.of(CHAINS), stop_signal=self.of(("", "SIGINT")))

    def exit(self) -> Exit:
        return Exit(self.of((None, 0, 1, 137, 255)), self.moment(), self.chance(0.2))

    def archive(self) -> ArchiveFacts:
        return ArchiveFacts(
            sequence=self.of((7, 8)),
            kind=REF.kind,
            namespace=REF.namespace,
            name=REF.name,
            uid=self.of((Uid("uid-0"), REF.uid)),
            store="default",
            node_id=self.of((None, NODE, NODE, NodeId("node-2"))),
            snapshot_key=self.of(KEYS),
            image=self.of(IMAGES),
            image_digest="sha256:dd",
            chain_id=self.of(CHAINS),
            sha256="ee",
            bytes=10,
            entries=1,
            uncompressed_bytes=10,
            empty=False,
        )

    def snapshots(self) -> tuple[SnapshotFacts, ...]:
        keys = [key for key in KEYS if self.chance(0.5)]
        self._random.shuffle(keys)
        return tuple(
            SnapshotFacts(
                key, self.of((1, 2)), self.of(CHAINS), self.of(IMAGES), "sha256:dd", self.of((None, None, 7, 9))
            )
            for key in keys
        )

    def spec(self) -> RuntimeSpec:
        reads = EnvVar(name="X", value_from=EnvSource(field_ref=FieldSelector(field_path="metadata.name")))
        return RuntimeSpec(
            image=self.of(IMAGES),
            args=self.of(((), ("other",))),
            env=self.of(((), (reads,))),
            desired_state=self.of((DesiredState.RUNNING, *DesiredState)),
            restart_policy=self.of(tuple(RestartPolicy)),
            stop=Stop(signal=self.maybe(0.3, "SIGINT")),
            stopped_ttl=self.of(("720h", "0s", "100s", "Never")),
            deletion_policy=self.of(tuple(DeletionPolicy)),
            restore=self.of(
                (
                    Restore(),
                    Restore(policy=RestorePolicy.NONE),
                    Restore(policy=RestorePolicy.ARCHIVE, archive="br-hermes-7"),
                )
            ),
            min_ready_seconds=self.of((0, 30)),
            network=self.network(),
            ports=self.of(PORTS),
            startup_probe=self.maybe(0.2, PROBE),
            readiness_probe=self.maybe(0.4, PROBE),
            liveness_probe=self.maybe(0.4, PROBE),
        )

    def verdict(self) -> Verdict | None:
        return self.of((None, None, Verdict(True), Verdict(False, "status 500")))

    def probes(self) -> ProbeFacts:
        return ProbeFacts(self.verdict(), self.verdict(), self.verdict())

    def health(self) -> Health:
        return Health(
            started=self.chance(0.5),
            ready=self.of((None, True, False)),
            message="readiness probe failed: status 500",
            ended_for=self.of(("", "", "", "liveness probe failed: status 500")),
            failing=self.of(((), tuple(ProbeKind), (ProbeKind.READINESS,))),
            damage=self.of(("", "", "the rules are gone")),
        )

    def network(self) -> Network:
        peer = NetworkPeer(namespace="others")
        return Network(
            mode=self.of((None, *NetworkMode)),
            policy=self.maybe(0.3, NetworkPolicy(allow_from=(peer,))),
        )

    def sandbox(self) -> SandboxFacts:
        whole = SandboxFacts("/run/netns/x", NetworkMode.CNI, True, ("10.0.0.2",))
        empty = SandboxFacts("/run/netns/x", NetworkMode.CNI, attached=False)
        served = replace(whole, ports=(HostPort("rcon", "TCP", 25575, 9000),))
        damaged = replace(whole, damage="the rules are gone")
        return self.of((SandboxFacts("/run/netns/x"), whole, empty, damaged, served))

    def mark(self) -> str:
        return self.of((spec_mark(self.spec()), "other-mark"))

    def workspace(self) -> Workspace:
        n = self.of((1, 2))
        return Workspace(
            key=REF.snapshot_key(n),
            n=n,
            image=self.of(IMAGES),
            image_digest="sha256:dd",
            chain_id=self.of(CHAINS),
            prepared=self.chance(0.7),
            gate=self.maybe(0.2, self.archive()),
            restored_from=self.maybe(0.2, "br-hermes-7"),
            ever_started=self.chance(0.6),
            archived=self.maybe(0.4, self.archive()),
            removal_announced=self.chance(0.3),
        )

    def record(self) -> Record:
        operation = OpenOperation(
            OperationId("operation"), self.of(tuple(Op)), self.of(tuple(Source)), NOW - 5, self.of((None, *Phase))
        )
        return Record(
            ref=REF,
            newest_n=self.of((0, 1, 2)),
            workspace=self.maybe(0.7, self.workspace()),
            operations=self.of((0, 3)),
            operation=self.maybe(0.6, operation),
            phase=self.of((None, *Phase)),
            started_at=self.maybe(0.7, self.moment()),
            stopped_at=self.maybe(0.5, self.moment()),
            running=self.chance(0.5),
            restarts=self.of((0, 2)),
            failures_in_row=self.of((0, 1, 2, 1000)),
            next_start_at=self.maybe(0.3, self.moment()),
            last_exit=self.maybe(0.5, self.exit()),
            halted=self.maybe(0.2, Halted(Reason.COMPLETED, self.mark())),
            host_ports=self.of(NUMBERS),
            deletion_seen=self.chance(0.5),
            force_released=self.chance(0.15),
            released=self.chance(0.15),
            put_away=self.maybe(0.2, PutAway(self.archive(), self.of(tuple(Source)))),
            health=self.health() if self.chance(0.5) else NO_HEALTH,
            stop_asked=self.maybe(0.3, StopAsked(42, Uptime("boot", self.of((100.0, 195.0, 200.0))))),
            last_request=self.maybe(0.2, AnsweredRequest(RequestId("1"), Outcome.SUCCESS, Code.NONE, "done")),
        )

    def ledger(self) -> LedgerFacts:
        return LedgerFacts(
            data_seen=self.maybe(0.3, KEYS[0]),
            released=self.chance(0.2),
            latest=self.maybe(0.4, self.archive()),
            named=self.maybe(0.6, self.archive()),
            unarchived=self.of(((), (), (Uid("uid-0"),))),
            put_away=self.maybe(0.3, self.archive()),
            purgeable=self.of(((), (7,))),
        )

    def observed(self) -> Observed:
        task = TaskFacts(self.of(tuple(TaskState)), 42, self.maybe(0.7, self.exit()), self.of((0, 0, 1, 5)))
        return Observed(
            container=self.certain(ContainerFacts(REF.container_id, self.of(KEYS), self.mark())),
            task=self.certain(task),
            snapshots=self.certain(self.snapshots()),
            sandbox=self.certain(self.sandbox()),
            image=self.certain(self.image()),
            wanted_image=self.certain(self.image()),
            ledger=self.certain(self.ledger()),
            probes=self.probes() if self.chance(0.5) else NOTHING_PROBED,
        )

    def runtime(self, *, terminating: bool) -> Runtime:
        force = self.chance(0.1)
        return Runtime(
            kind=REF.kind,
            namespace=REF.namespace,
            name=REF.name,
            uid=REF.uid,
            generation=3,
            resource_version="10",
            labels={
                names.LABEL_NODE: NODE_NAME,
                names.LABEL_NODE_ID: NODE,
                names.LABEL_NAMESPACE_UID: REF.namespace_uid,
            },
            annotations=({names.ANNOTATION_FORCE_RELEASE: "the disk is gone"} if force else {})
            | ({names.ANNOTATION_REQUEST: self.of(("cleanup/1", "cleanup/2", "?"))} if self.chance(0.2) else {})
            | told(dict(self.of(NUMBERS))),
            finalizers=(names.FINALIZER,),
            deletion_timestamp="2026-01-01T00:00:00Z" if terminating else None,
            creation_timestamp="2026-01-01T00:00:00Z",
            spec=self.spec(),
            status=RuntimeStatus(snapshot_key=self.maybe(0.3, KEYS[0])),
            invalid=self.maybe(0.1, "spec.stop: expected an object"),
        )

    def desired(self) -> Desired:
        kinds: tuple[Desired, ...] = (
            Wanted(self.runtime(terminating=False)),
            Wanted(self.runtime(terminating=False)),
            Terminating(self.runtime(terminating=True)),
            Terminating(self.runtime(terminating=True)),
            Gone(confirmed=self.chance(0.5)),
            Unseen("the API server did not answer"),
        )
        return self.of(kinds)

    def failure(self) -> Failure:
        return Failure(
            reason=self.of((Reason.START_FAILED, Reason.IMAGE_NOT_FOUND, Reason.ARCHIVE_CORRUPT)),
            message="it failed",
            step="StartTask",
            user_error=self.chance(0.3),
            blocks_data=self.chance(0.3),
            retry_at=self.of((NOW - 1, NOW + 10)),
        )

    def world(self) -> World:
        freeze = Freeze(self.of((Reason.MASS_ABSENCE, Reason.IDENTITY_CHANGED)), "look first")
        world = World(
            ref=REF,
            desired=self.desired(),
            observed=self.observed(),
            record=self.record(),
            failure=self.maybe(0.2, self.failure()),
            freeze=self.maybe(0.2, freeze),
            uptime=self.of((Uptime("boot", 200.0), Uptime("boot", 200.0), Uptime("another", 200.0), None)),
        )
        world = plausible(world) if self.chance(0.8) else world
        world = consistent(world) if self.chance(0.6) else world
        return idle(world) if self.chance(0.5) else world


def plausible(world: World) -> World:
    """The same world, with no reason to wait and a record that has seen what is wanted: else few plans get far."""
    going = not isinstance(world.desired, Wanted)
    record = replace(world.record, deletion_seen=going, force_released=False, released=False)
    desired = world.desired
    if isinstance(desired, Wanted):
        desired = Wanted(msgspec.structs.replace(desired.runtime, invalid=None, status=RuntimeStatus()))
    return replace(world, record=record, desired=desired, failure=None, freeze=None)


def consistent(world: World) -> World:
    """The same world, with the engine showing what the record says: else most worlds end at the first contradiction."""
    workspace, observed = world.record.workspace, world.observed
    if workspace is None or isinstance(observed.snapshots, Unknown):
        return world
    gate = workspace.gate.sequence if workspace.gate is not None else None
    facts = SnapshotFacts(workspace.key, workspace.n, workspace.chain_id, workspace.image, workspace.image_digest, gate)
    container = observed.container
    if isinstance(container, Present):
        container = Present(replace(container.it, snapshot_key=workspace.key))
        if isinstance(world.desired, Wanted):
            container = Present(replace(container.it, spec_hash=spec_mark(world.desired.runtime.spec)))
    image = observed.image
    if isinstance(image, Present):
        image = Present(replace(image.it, chain_id=workspace.chain_id))
    seen = replace(observed, snapshots=Present((facts,)), container=container, image=image)
    return replace(world, observed=seen)


def idle(world: World) -> World:
    """The same world without a task and a container: where the steps that matter most are planned."""
    observed = replace(world.observed, task=Absent(), container=Absent(), sandbox=Absent())
    return replace(world, observed=observed, record=replace(world.record, running=False))


@dataclass(frozen=True, slots=True)
class Case:
    """A world and the plan that is made from it."""

    world: World
    plan: Plan


@cache
def some_cases(seed: int) -> tuple[Case, ...]:
    draw = Draw(seed)
    return tuple(Case(world, plan(world, NOW)) for world in (draw.world() for _ in range(WORLDS_PER_EXAMPLE)))


cases = st.integers(0, int(os.environ.get("PERDURE_TEST_SEEDS", "1000"))).map(some_cases)
"""Each example is a handful of worlds. Properties share their examples, so each plan is made once."""
