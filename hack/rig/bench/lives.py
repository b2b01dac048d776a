"""One runtime at a time through its life, and the same work by ``ctr`` and the bare engine in between (A B C A B C).

Start, two crashes, stop and start, purge; and, in a loop of their own, deletions that preserve 10 MiB. Called by
``rig.bench.start``.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rig.bench.cpu import spent
from rig.bench.peers import BareEngine, Ctr
from rig.bench.results import Goal, Row, Timing
from rig.bench.stage import Stage, Subject
from rig.progress import say

PRESERVED_BYTES = 10 << 20
SECOND_CRASHES = 4
"""Every so-manieth life crashes twice: the back-off of the second crash is a second long."""


@dataclass(slots=True)
class Samples:
    """Seconds of every operation, and CPU seconds of the starts by part."""

    ready: list[float] = field(default_factory=list)
    ctr_run: list[float] = field(default_factory=list)
    bare_engine: list[float] = field(default_factory=list)
    running_again: list[float] = field(default_factory=list)
    first_line: list[float] = field(default_factory=list)
    ctr_start: list[float] = field(default_factory=list)
    second_crash: list[float] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)
    purged: list[float] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=dict)

    def add_cpu(self, parts: dict[str, float]) -> None:
        """Add the CPU seconds of one start."""
        for part, seconds in parts.items():
            self.cpu[part] = self.cpu.get(part, 0.0) + seconds


async def live(stage: Stage, n: int) -> list[Row]:
    """``n`` lives, one after another."""
    samples = Samples()
    ctr, bare = await Ctr.prepared(stage.environment), await BareEngine.prepared(stage)
    try:
        for i in range(n):
            _tell("lives", i, n)
            await _live_once(stage, samples, crash_twice=i % SECOND_CRASHES == 0)
            container, seconds = await ctr.run()
            samples.ctr_run.append(seconds)
            samples.ctr_start.append(await ctr.start_again(container))
            await ctr.remove(container)
            samples.bare_engine.append(await bare.start_and_remove())
    finally:
        await bare.close()
    return _rows(samples, n, notes(stage))


async def apart(stage: Stage, n: int) -> list[Row]:
    """Only starts, as with controller and agent in two processes."""
    ctr = await Ctr.prepared(stage.environment)
    ours, theirs = [], []
    for i in range(n):
        _tell("starts with controller and agent apart", i, n)
        subject = await Subject.create(stage)
        ours.append(await subject.ready(subject.began) - subject.began)
        await subject.spoke()
        await subject.delete()
        container, seconds = await ctr.run()
        theirs.append(seconds)
        await ctr.remove(container)
    return Timing(
        "apply → Ready, controller and agent apart", ours, theirs, ((50, Goal(1.0, on="ratio")),), tail=True,
        notes=f"against `ctr run -d`; {notes(stage)}",
    ).rows()  # fmt: skip


async def preserve(stage: Stage, n: int) -> list[Row]:
    """Deletions that archive 10 MiB that do not compress."""
    seconds = []
    for i in range(n):
        _tell("deletions that preserve", i, n)
        subject = await Subject.create(stage, deletionPolicy="Preserve")
        await subject.ready(subject.began)
        await subject.spoke()
        _write_durably(Path(f"/proc/{subject.pid}/root/data/random"))
        seconds.append(await subject.delete())
    return Timing(
        "delete + Preserve of 10 MiB → gone", seconds, goals=((50, Goal(600.0)),),
        notes=f"random bytes, fsynced before; process exits on TERM; {notes(stage)}",
    ).rows()  # fmt: skip


async def _live_once(stage: Stage, samples: Samples, *, crash_twice: bool) -> None:
    before = stage.accounts.seconds()
    subject = await Subject.create(stage)
    samples.ready.append(await subject.ready(subject.began) - subject.began)
    await subject.spoke()
    samples.add_cpu(spent(before, stage.accounts.seconds()))

    began = subject.kill()
    samples.first_line.append(await subject.spoke(2) - began)
    samples.running_again.append(await subject.ready(began, restarts=1) - began)
    if crash_twice:
        began = subject.kill()
        samples.second_crash.append(await subject.ready(began, restarts=2) - began)
        await subject.spoke(3)

    began = time.perf_counter()
    await stage.cluster.patch(subject.name, desiredState="Stopped")
    await subject.phase("Stopped", began)
    began = time.perf_counter()
    await stage.cluster.patch(subject.name, desiredState="Running")
    samples.resumed.append(await subject.ready(began) - began)
    await subject.spoke(4 if crash_twice else 3)
    samples.purged.append(await subject.delete())


def _rows(samples: Samples, n: int, common: str) -> list[Row]:
    own_netns = "ctr's time includes its own start-up; runc makes its network namespace; ctr sets no pids limit"
    against_run = f"against `ctr run -d`; {own_netns}; {common}"
    ours_within = "ours: kill to the watch event with the restart counted and Ready"
    timings = [
        Timing("apply → Ready, one at a time", samples.ready, samples.ctr_run, ((50, Goal(1.0, on="ratio")),),
               tail=True, notes=f"POST to watch event; {against_run}"),
        Timing("engine start alone", samples.bare_engine, samples.ctr_run, ((50, Goal(0.9, on="ratio")),),
               notes=f"image, sandbox, prepare, create, start; no API, no loop; {against_run}"),
        Timing("kill -9 → Ready again", samples.running_again,
               goals=((50, Goal(120.0)), (90, Goal(170.0))), notes=f"{ours_within}; {common}"),
        Timing("kill -9 → first line of the new process", samples.first_line, samples.ctr_start,
               ((50, Goal(1.5, on="ratio")),),
               notes=f"against `ctr task start` on the same snapshot, the dead task cleared away before; {common}"),
        Timing("2nd kill -9 → Ready again", samples.second_crash, goals=((50, Goal(1200.0)),),
               notes=f"includes 1 s of back-off; {common}"),
        Timing("Stopped → Ready (resume)", samples.resumed, goals=((50, Goal(120.0)),), notes=common),
        Timing("delete + Purge → gone", samples.purged, goals=((50, Goal(150.0)),),
               notes=f"process exits on TERM; {common}"),
    ]  # fmt: skip
    return [row for timing in timings for row in timing.rows()] + cpu_rows("one at a time", samples.cpu, n, common)


def cpu_rows(how: str, cpu: dict[str, float], starts: int, common: str, goal: Goal | None = None) -> list[Row]:
    """CPU-ms per start by part; ``goal`` is for Perdure's own."""
    what = f"child processes included; engine: containerd, shims, runc, containers; {common}"
    return [
        Row(f"CPU per start, {how}: {part}", "ms", seconds * 1000 / starts, starts,
            goal=goal if part == "perdure" else None, notes=what)
        for part, seconds in sorted(cpu.items())
    ]  # fmt: skip


def notes(stage: Stage) -> str:
    """What every figure is to be read with."""
    return f"network mode none, seccomp on, image present, etcd and PostgreSQL fsync, {stage.versions}"


def _tell(what: str, done: int, n: int) -> None:
    if done % max(1, n // 10) == 0:
        say(f"    {what}: {done} of {n}")


def _write_durably(path: Path, content: Callable[[int], bytes] = os.urandom) -> None:
    with path.open("wb") as file:
        file.write(content(PRESERVED_BYTES))
        file.flush()
        os.fsync(file.fileno())
