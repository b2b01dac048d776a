"""The same work by a kubelet: a lean Pod beside a runtime with a network, on one control plane and one containerd.

Called by ``rig.bench.network``. Lean means without what our runtimes have not either: a service-account token (a kubelet
takes 300 ms to mount one), probes, services in the environment. Everything that is compared takes turns (A B A B).
"""

import asyncio
import random
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rig.bench import apimetrics
from rig.bench.cluster import NAMESPACE, BenchmarkError, Condition, Json
from rig.bench.cpu import spent
from rig.bench.crowds import quiet
from rig.bench.networked import WITH, notes, tell
from rig.bench.results import Row, Timing
from rig.bench.stage import IMAGE, SPEC, Stage, Subject, open_stage, spoke
from rig.environment import Environment
from rig.kubelet import NODE, PodNode
from rig.leaks import Footprint, settled_leaks
from rig.progress import say, ticking

NODES = "/api/v1/nodes"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
PAUSE_SECONDS = (0.3, 1.5)
"""A kubelet looks at all containers once a second: work in a fixed rhythm would fall into step with that."""
COUNTED = 10
"""Starts whose API writes are counted."""
OURS_ALONE = frozenset({"perdure", "postgres"})
THEIRS_ALONE = frozenset({"kubelet", "kube-scheduler"})
"""Parts that the other side does not need; what they do meanwhile is not counted for it."""
POD: Json = {
    "automountServiceAccountToken": False,
    "enableServiceLinks": False,
    "containers": [
        {
            "name": "main",
            "image": IMAGE,
            "resources": SPEC["resources"],
            "securityContext": {"allowPrivilegeEscalation": False, "seccompProfile": {"type": "RuntimeDefault"}},
        }
    ],
}


class Life(Protocol):
    """What both sides make: something that becomes Ready, says so itself, and goes when it is deleted."""

    @property
    def began(self) -> float:
        """Just before its POST was sent (time.perf_counter)."""

    async def ready(self, since: float) -> float:
        """When the watch told that it is Ready."""

    async def spoke(self) -> float:
        """When its main process had said that it is ready."""

    async def delete(self) -> float:
        """DELETE it and wait until it is gone; seconds that took."""


Create = Callable[[], Awaitable[Life]]


@dataclass(slots=True)
class LeanPod:
    """One Pod."""

    stage: Stage
    node: PodNode
    name: str
    uid: str
    began: float

    @classmethod
    async def create(cls, stage: Stage, node: PodNode) -> "LeanPod":
        """POST it under a name that was never used."""
        name = f"p-{uuid.uuid4().hex[:12]}"
        began = time.perf_counter()
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": POD}
        made = await stage.cluster.request("POST", PODS, manifest)
        return cls(stage, node, name, made["metadata"]["uid"], began)

    async def ready(self, since: float) -> float:
        """When the watch told that it is Ready."""
        return await self._seen(lambda seen: seen.has_condition("Ready"), "Ready", since)

    async def spoke(self) -> float:
        """When its main process had said that it is ready."""
        return await spoke(self.node.logs / f"{NAMESPACE}_{self.name}_{self.uid}" / "main" / "0.log")

    async def delete(self) -> float:
        """DELETE it and wait until it is gone; seconds that took."""
        began = time.perf_counter()
        await self.stage.cluster.request("DELETE", f"{PODS}/{self.name}")
        gone = await self._seen(lambda seen: seen.type == "DELETED", "gone", began)
        self.stage.cluster.forget(self.name)
        return gone - began

    async def _seen(self, condition: Condition, what: str, since: float) -> float:
        """When the watch told this. Raises BenchmarkError with the end of the kubelet's log, which goes with the environment."""
        try:
            return (await self.stage.cluster.seen(self.name, condition, what, since=since)).at
        except BenchmarkError as error:
            kubelet = self.node.kubelet
            state = "has ended" if kubelet.identity() is None else "runs"
            raise BenchmarkError(f"{error}; the kubelet {state}\n{kubelet.log_tail()}") from error


async def beside_pods(directory: Path | None, n: int, size: int, rounds: int) -> list[Row]:
    """``n`` lives one at a time, and ``rounds`` bursts of ``size``, on an environment of their own.

    Raises BenchmarkError if a kubelet left anything on the machine.
    """
    before = await asyncio.to_thread(Footprint.take)
    async with open_stage(directory, pods=True) as stage, open_node(stage) as node:
        with ticking("starting perdure standalone"):
            await stage.start_perdure("standalone")
        sides: dict[str, Create] = {
            "ours": lambda: Subject.create(stage, **WITH),
            "theirs": lambda: LeanPod.create(stage, node),
        }
        common = (
            "theirs: a Pod without token, probes and services, bound by kube-scheduler as ours is by the controller; same "
            f"image, limits, control plane and containerd, a network of the same plugins; kubelet {node.version()} and "
            f"perdure standalone run throughout; {notes(stage)}"
        )
        rows = [
            *await one_at_a_time(sides, n, common),
            *await counted_writes(stage, sides, common),
            *await bursts(stage, sides, size, rounds, common),
        ]
    left = await asyncio.to_thread(left_behind, before, stage.environment)
    if left:
        raise BenchmarkError("\n    ".join(["the kubelet's environment left something behind:", *left]))
    return rows


@asynccontextmanager
async def open_node(stage: Stage) -> AsyncIterator[PodNode]:
    """A kubelet that is ready for Pods; gone when this closes, Pods aside."""
    node, began = PodNode(stage.environment), time.perf_counter()
    try:
        async with stage.cluster.watching(NODES), stage.cluster.watching(PODS):
            with ticking("starting kube-scheduler and kubelet"):
                starting = asyncio.ensure_future(asyncio.to_thread(node.start))
                try:
                    await asyncio.shield(starting)
                finally:
                    await asyncio.wait([starting])  # a thread goes on: what it starts must be there to be stopped
                for daemon in (node.kubelet, node.scheduler):
                    stage.accounts.admit(daemon.name, Stage.process_of(daemon))
                await stage.cluster.seen(NODE, lambda seen: seen.has_condition("Ready"), "Ready", since=began)
            # Nodes begin with a taint; the controller that takes it away from those that are Ready does not run here.
            await stage.cluster.request("PATCH", f"{NODES}/{NODE}", {"spec": {"taints": None}})
            yield node
    finally:
        await asyncio.to_thread(node.stop)


def left_behind(before: Footprint, environment: Environment) -> list[str]:
    """What is there now of this environment, or of any kubelet, that was not there before."""
    return settled_leaks(
        before,
        own=environment.directory,
        folders=(environment.directory, environment.run_directory),
        concerning=(
            str(environment.directory),
            environment.run_directory.name,
            environment.pod_network.identifier,
            "kube",
            "KUBE-",
            "/var/lib/cni",
            "/var/log/",
        ),
    )


async def one_at_a_time(sides: dict[str, Create], n: int, common: str) -> list[Row]:
    """Starts and deletions of each side in turn, one at a time."""
    ready: dict[str, list[float]] = defaultdict(list)
    gone: dict[str, list[float]] = defaultdict(list)
    for i in range(n):
        tell("lives, ours and lean Pods in turn", i, n)
        for side, create in sides.items():
            await asyncio.sleep(random.uniform(*PAUSE_SECONDS))  # part of what is measured, not a wait for something
            life = await create()
            ready[side].append(await life.ready(life.began) - life.began)
            await life.spoke()
            gone[side].append(await life.delete())
    return [
        *Timing("apply → Ready with network, against a lean Pod", ready["ours"], ready["theirs"],
                notes=f"POST to watch event; {common}").rows(),
        *Timing("delete → gone with network, against a lean Pod", gone["ours"], gone["theirs"],
                notes=f"ours: Purge; process exits on TERM; {common}").rows(),
    ]  # fmt: skip


async def counted_writes(stage: Stage, sides: dict[str, Create], common: str) -> list[Row]:
    """API writes of COUNTED starts of each side, one after another."""
    counts: dict[str, float] = {}
    described: list[str] = []
    for side, create in sides.items():
        say(f"    API writes of {COUNTED} starts: {side}")
        before, lives = await quiet(stage), list[Life]()
        for _ in range(COUNTED):
            lives.append(await create())
            await lives[-1].ready(lives[-1].began)
        written = await quiet(stage) - before
        counts[side] = written.total() / COUNTED
        described.append(f"{side}: {apimetrics.describe(written, COUNTED)}")
        await asyncio.gather(*(life.delete() for life in lives))
    note = f"the user's POST counted, Leases left out; {'; '.join(described)}; {common}"
    name = "API writes per create → Ready with network, Events counted, against a lean Pod"
    return [Row(name, "", counts["ours"], COUNTED, counts["theirs"], notes=note)]


@dataclass(slots=True)
class Burst:
    """Seconds from the first POST to the last Ready, and CPU seconds until all had printed their line; sums of rounds."""

    wall: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)

    async def add(self, stage: Stage, create: Create, size: int) -> None:
        """One more round; what it made is removed."""
        before, began = stage.accounts.seconds(), time.perf_counter()
        lives = await asyncio.gather(*(create() for _ in range(size)))
        ready = await asyncio.gather(*(life.ready(began) for life in lives))
        await asyncio.gather(*(life.spoke() for life in lives))
        for part, seconds in spent(before, stage.accounts.seconds()).items():
            self.cpu[part] = self.cpu.get(part, 0.0) + seconds
        self.wall += max(ready) - began
        await asyncio.gather(*(life.delete() for life in lives))


async def bursts(stage: Stage, sides: dict[str, Create], size: int, rounds: int, common: str) -> list[Row]:
    """``size`` at once, each side in turn."""
    found = {side: Burst() for side in sides}
    for i in range(rounds):
        say(f"    burst of {size}, ours and lean Pods: round {i + 1} of {rounds}")
        for side, create in sides.items():
            await quiet(stage)  # a kubelet goes on clearing away after Pods are gone
            await found[side].add(stage, create, size)
    return burst_rows(found["ours"], found["theirs"], size, rounds, common)


def burst_rows(ours: Burst, theirs: Burst, size: int, rounds: int, common: str) -> list[Row]:
    """Rates, and CPU-ms per start of all parts that each side needs."""
    starts, who = size * rounds, f"burst of {size} with network"
    used = [
        sum(seconds for part, seconds in burst.cpu.items() if part not in unneeded) * 1000 / starts
        for burst, unneeded in ((ours, THEIRS_ALONE), (theirs, OURS_ALONE))
    ]
    parts = f"CPU-ms by part; ours: {_by_part(ours, starts)}; theirs: {_by_part(theirs, starts)}"
    return [
        Row(f"{who}: starts per second, against lean Pods", "/s", starts / ours.wall, rounds, starts / theirs.wall,
            notes=f"first POST to last Ready; {common}"),
        Row(f"CPU per start, {who}: all parts, against lean Pods", "ms", used[0], starts, used[1],
            notes=f"each side without the other's own parts; {parts}; {common}"),
    ]  # fmt: skip


def _by_part(burst: Burst, starts: int) -> str:
    return ", ".join(f"{part} {seconds * 1000 / starts:.1f}" for part, seconds in sorted(burst.cpu.items()))
