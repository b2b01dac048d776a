"""Starts with a network: at the engine alone, through the API, and twenty at once; each beside the same without a network,
and beside ``ctr`` with the same plugins. Called by ``rig.bench.network``.

Everything that is compared takes turns (A B C A B C) in one run.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perdure.api.network import NetworkMode
from perdure.plan.world import HostPort
from rig.bench import apimetrics
from rig.bench.attaching import CONTAINER_PORT, AttachingCtr, open_attaching
from rig.bench.cluster import Json
from rig.bench.cpu import spent
from rig.bench.crowds import burst_of_ours, children_seconds
from rig.bench.peers import BareEngine, Ctr, Way
from rig.bench.results import Goal, Row, Timing
from rig.bench.stage import Stage, Subject, free_ports
from rig.progress import say

WITH: Json = {"network": {"mode": "cni"}}
WITHOUT: Json = {"network": {"mode": "none"}}
WITH_PORT: Json = {**WITH, "ports": [{"name": "web", "containerPort": CONTAINER_PORT}]}


def notes(stage: Stage) -> str:
    """What every figure of the network is to be read with."""
    return (
        f"seccomp on, image present, etcd and PostgreSQL fsync, CNI records in {_filesystem(stage)}, {stage.versions}"
    )


# ------------------------------------------------------------------------------------------------- the engine alone


async def at_the_engine(stage: Stage, configured: Path, n: int, *, port: bool) -> list[Row]:
    """``n`` starts each, without API and loop. ``port``: one port of the node leads into each."""
    what = "with portmap and one port" if port else "bridge alone"
    seconds: dict[str, list[float]] = defaultdict(list)
    ctr = await AttachingCtr.prepared(stage.environment, configured)
    bare = await BareEngine.prepared(stage)
    try:
        async with open_attaching(stage.environment, configured) as attaching:
            sandbox = attaching.networks.sandbox
            for i in range(n):
                tell(f"starts at the engine, {what}", i, n)
                number = free_ports(1)[0] if port else None
                ports = () if number is None else (HostPort("web", "TCP", CONTAINER_PORT, number),)
                seconds["parallel"].append(await bare.start_and_remove(Way(sandbox, NetworkMode.CNI, ports)))
                seconds["serial"].append(await bare.start_and_remove(Way(sandbox, NetworkMode.CNI, ports, serial=True)))
                container, attachment, taken = await ctr.run(number)
                seconds["ctr"].append(taken)
                await ctr.remove(container, attachment)
                seconds["none"].append(await bare.start_and_remove(Way(sandbox)))
    finally:
        await bare.close()
    return engine_rows(what, seconds, notes(stage))


def engine_rows(what: str, seconds: Mapping[str, Sequence[float]], common: str) -> list[Row]:
    """``seconds`` of ours (``parallel``) and of each peer."""
    ours = seconds["parallel"]
    name, how = f"request → task running, {what}", f"ours: ADD while the task is made; own firewall; {common}"
    peers = {
        "against our serial order": (
            "serial",
            Goal(0.8, on="ratio"),
            "theirs: namespace, ADD, then the same engine calls",
        ),
        "against ctr": ("ctr", None, "theirs: namespace, ADD by the same client, then `ctr run -d`; no firewall"),
        "against no network": ("none", Goal(1.3, on="ratio"), "theirs: the same with loopback alone"),
    }
    return [
        row
        for title, (peer, goal, note) in peers.items()
        for row in Timing(
            f"{name}: {title}", ours, seconds[peer], ((50, goal),) if goal else (), notes=f"{note}; {how}"
        ).rows()
    ]


# ------------------------------------------------------------------------------------------------- through the API


@dataclass(slots=True)
class Lives:
    """Seconds of every operation of one kind of runtime, and CPU seconds of its starts by part."""

    spec: Json
    ready: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    purged: list[float] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=dict)

    async def live(self, stage: Stage) -> None:
        """One life: start, crash, purge."""
        before = stage.accounts.seconds()
        subject = await Subject.create(stage, **self.spec)
        self.ready.append(await subject.ready(subject.began) - subject.began)
        await subject.spoke()
        for part, seconds in spent(before, stage.accounts.seconds()).items():
            self.cpu[part] = self.cpu.get(part, 0.0) + seconds
        began = subject.kill()
        self.again.append(await subject.ready(began, restarts=1) - began)
        await subject.spoke(2)
        self.purged.append(await subject.delete())


async def through_the_api(stage: Stage, n: int) -> list[Row]:
    """``n`` lives each, with a network, with a port besides, and without, and as many ``ctr run -d`` without."""
    ctr, plain = await Ctr.prepared(stage.environment), list[float]()
    network, port, none = Lives(WITH), Lives(WITH_PORT), Lives(WITHOUT)
    for i in range(n):
        tell("lives with a network, with a port, without", i, n)
        for lives in (network, port, none):
            await lives.live(stage)
        container, seconds = await ctr.run()
        plain.append(seconds)
        await ctr.remove(container)
    return _life_rows(network, port, none, plain, notes(stage))


def _life_rows(network: Lives, port: Lives, none: Lives, plain: list[float], common: str) -> list[Row]:
    beside = f"POST to watch event; theirs: the same without a network; {common}"
    within = f"kill to the watch event with the restart counted and Ready; theirs: the same without a network; {common}"
    timings = [
        Timing("apply → Ready with network", network.ready, none.ready, ((50, Goal(150.0)),), tail=True,
               notes=beside),
        Timing("apply → Ready with network and a Dynamic port", port.ready, none.ready, tail=True, notes=beside),
        Timing("apply → Ready with network, against ctr", network.ready, plain, ((50, Goal(1.2, on="ratio")),),
               notes=f"theirs: `ctr run -d`, whose network namespace is empty; {common}"),
        Timing("kill -9 → Ready with network", network.again, none.again,
               ((50, Goal(120.0)), (90, Goal(170.0))), notes=within),
        Timing("delete + Purge → gone with network", network.purged, none.purged, ((50, Goal(150.0)),),
               notes=f"process exits on TERM; theirs: the same without a network; {common}"),
        Timing("delete + Purge → gone with network and a port", port.purged, none.purged,
               notes=f"process exits on TERM; theirs: the same without a network; {common}"),
    ]  # fmt: skip
    n = len(network.ready)
    return [
        *(row for timing in timings for row in timing.rows()),
        *_cpu_rows("one at a time with network", network.cpu, none.cpu, n, common),
        *_cpu_rows("one at a time with network and a port", port.cpu, none.cpu, n, common),
    ]


# ------------------------------------------------------------------------------------------------- many at once


async def burst(stage: Stage, configured: Path, size: int, rounds: int) -> list[Row]:
    """``size`` applies at once with a network, without one, and as many by ``ctr`` with the same plugins, in turn."""
    ctr = await AttachingCtr.prepared(stage.environment, configured)
    seconds: dict[str, float] = defaultdict(float)
    cpu: dict[str, dict[str, float]] = {"network": defaultdict(float), "none": defaultdict(float)}
    writes = {"network": Counter[str](), "none": Counter[str]()}
    ctr_cpu = 0.0
    for i in range(rounds):
        say(f"    burst of {size} with network, without, and by ctr: round {i + 1} of {rounds}")
        for name, spec in (("network", WITH), ("none", WITHOUT)):
            taken, used, written = await burst_of_ours(stage, size, **spec)
            seconds[name] += taken
            writes[name] += written
            for part, share in used.items():
                cpu[name][part] += share
        taken, used_by_ctr = await _burst_of_ctr(stage, ctr, size)
        seconds["ctr"], ctr_cpu = seconds["ctr"] + taken, ctr_cpu + used_by_ctr
    starts, common, who = size * rounds, notes(stage), f"burst of {size} with network"
    rate = {name: starts / total for name, total in seconds.items()}
    total = sum(cpu["network"].values()) * 1000 / starts
    return [
        Row(f"{who}: starts per second, against ctr", "/s", rate["network"], rounds, rate["ctr"],
            Goal(0.8, on="ratio", better="higher"), f"theirs: {ctr_burst(size)}; {common}"),
        Row(f"{who}: starts per second, against no network", "/s", rate["network"], rounds, rate["none"],
            Goal(12.0, better="higher"), f"theirs: the same without a network; {common}"),
        Row(f"API writes per start, {who}", "", writes["network"].total() / starts, starts,
            writes["none"].total() / starts,
            notes=f"{apimetrics.describe(writes['network'], starts)}; counted at the last Ready, so some Events are "
            f"missing; theirs: the same without a network; {common}"),
        Row(f"CPU per start, {who}: all parts, against ctr", "ms", total, starts, ctr_cpu * 1000 / starts,
            notes=f"theirs: ctr, plugins, containerd, shims, runc and containers; {common}"),
        *_cpu_rows(who, cpu["network"], cpu["none"], starts, common, Goal(25.0)),
    ]  # fmt: skip


def ctr_burst(size: int) -> str:
    """What the peer does, for the notes."""
    return f"{size} times at once: namespace, ADD by the same client, then `ctr run -d`; no firewall"


async def _burst_of_ctr(stage: Stage, ctr: AttachingCtr, size: int) -> tuple[float, float]:
    """Seconds, and CPU seconds of the engine and of the benchmark's own children."""
    before, children = stage.accounts.seconds(), children_seconds()
    began = time.perf_counter()
    found = await asyncio.gather(*(ctr.run() for _ in range(size)))
    taken = time.perf_counter() - began
    used = spent(before, stage.accounts.seconds())["engine"] + children_seconds() - children
    for container, attachment, _ in found:
        await ctr.remove(container, attachment)
    return taken, used


def _cpu_rows(
    how: str, ours: dict[str, float], theirs: dict[str, float], starts: int, common: str, goal: Goal | None = None
) -> list[Row]:
    """CPU-ms per start by part; ``goal`` is for Perdure's own."""
    what = f"child processes included, in perdure: plugins, nft; theirs: the same without a network; {common}"
    return [
        Row(f"CPU per start, {how}: {part}", "ms", seconds * 1000 / starts, starts,
            theirs.get(part, 0.0) * 1000 / starts, goal if part == "perdure" else None, what)
        for part, seconds in sorted(ours.items())
    ]  # fmt: skip


def tell(what: str, done: int, n: int) -> None:
    """Say how far it is, ten times."""
    if done % max(1, n // 10) == 0:
        say(f"    {what}: {done} of {n}")


def _filesystem(stage: Stage) -> str:
    """The kind of file system that has the run folder: what an fsync of a record costs depends on it."""
    folder = stage.environment.run_directory.resolve()
    found = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = [(len(fields[1]), fields[2]) for fields in found if folder.is_relative_to(fields[1])]
    return max(above)[1]
