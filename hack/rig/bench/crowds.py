"""Many runtimes at once: bursts of starts, API writes per start, an idle minute, a restart of the agent.

Called by ``rig.bench.start``, and ``rig.bench.networked`` for the bursts.
"""

import asyncio
import resource
import time
import urllib.request
from collections import Counter
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from rig.bench import apimetrics
from rig.bench.cpu import spent
from rig.bench.lives import cpu_rows, notes
from rig.bench.peers import Ctr
from rig.bench.results import Goal, Row
from rig.bench.stage import Stage, Subject, eventually
from rig.progress import say

QUIET_SECONDS = 2.0
"""No API write for so long means that Events, which come after Ready, are written."""
QUIET_LIMIT_SECONDS = 30.0
STATISTICS_SECONDS = 11.0
"""Sessions of PostgreSQL that fall idle report what they wrote within 10 s (pgstat.c, PGSTAT_IDLE_INTERVAL)."""
AT_ONCE = 10
"""Objects of the idle crowd that are made, or removed, at the same time."""
OBSERVED_SECONDS = 60.0
WRITTEN_ROWS = "SELECT relname, n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables"


async def burst(stage: Stage, size: int, rounds: int) -> list[Row]:
    """``size`` applies at once against as many ``ctr run -d`` at once, ``rounds`` times each, in turn."""
    ctr = await Ctr.prepared(stage.environment)
    ours = theirs = ctr_cpu = 0.0
    cpu: dict[str, float] = {}
    writes: Counter[str] = Counter()
    for i in range(rounds):
        say(f"    burst of {size}: round {i + 1} of {rounds}")
        seconds, used, written = await burst_of_ours(stage, size)
        ours, writes = ours + seconds, writes + written
        for part, share in used.items():
            cpu[part] = cpu.get(part, 0.0) + share
        before, client = stage.accounts.seconds(), children_seconds()
        began = time.perf_counter()
        containers = await asyncio.gather(*(ctr.run() for _ in range(size)))
        theirs += time.perf_counter() - began
        ctr_cpu += spent(before, stage.accounts.seconds())["engine"] + children_seconds() - client
        for container, _ in containers:
            await ctr.remove(container)
    starts, common = size * rounds, notes(stage)
    rate = Row(
        f"burst of {size}: starts per second", "/s", starts / ours, rounds, starts / theirs,
        Goal(0.8, on="ratio", better="higher"), f"against {size} parallel `ctr run -d`; {common}",
    )  # fmt: skip
    total = Row(
        f"CPU per start, burst of {size}: all parts", "ms", sum(cpu.values()) * 1000 / starts, starts,
        ctr_cpu * 1000 / starts, notes=f"against ctr, containerd, shims, runc and containers; {common}",
    )  # fmt: skip
    written_each = Row(
        f"API writes per start, burst of {size}", "", writes.total() / starts, starts,
        notes=f"counted at the last Ready, so some Events are missing: {apimetrics.describe(writes, starts)}; {common}",
    )  # fmt: skip
    return [rate, written_each, total, *cpu_rows(f"burst of {size}", cpu, starts, common, Goal(25.0))]


async def burst_of_ours(stage: Stage, size: int, **spec: object) -> tuple[float, dict[str, float], Counter[str]]:
    """Seconds from the first POST to the last Ready; CPU seconds by part and API writes until all printed their line."""
    written = apimetrics.writes(await stage.cluster.metrics())
    before, began = stage.accounts.seconds(), time.perf_counter()
    subjects = await asyncio.gather(*(Subject.create(stage, **spec) for _ in range(size)))
    ready = await asyncio.gather(*(subject.ready(began) for subject in subjects))
    await asyncio.gather(*(subject.spoke() for subject in subjects))
    cpu = spent(before, stage.accounts.seconds())
    written = apimetrics.writes(await stage.cluster.metrics()) - written
    await asyncio.gather(*(subject.delete() for subject in subjects))
    return max(ready) - began, cpu, written


async def writes_and_restart(stage: Stage, size: int) -> list[Row]:
    """API writes of ``size`` starts, counted by the API server; then Perdure is restarted over the running ones."""
    say(f"    API writes of {size} starts, and a restart over them")
    await quiet(stage)
    before = apimetrics.writes(await stage.cluster.metrics())
    subjects = []
    for _ in range(size):
        subject = await Subject.create(stage)
        await subject.ready(subject.began)
        await subject.spoke()
        subjects.append(subject)
    counts = await quiet(stage) - before
    rows = _write_rows(counts, size, notes(stage))
    pids = {subject.pid for subject in subjects}
    seconds = await _restart_perdure(stage, size)
    restarted = len(pids - {subject.pid for subject in subjects})
    rows += [
        Row(f"agent restart with {size} running: restarted runtimes", "", restarted, size, goal=Goal(0.0)),
        Row(f"agent restart with {size} running: process start → all observed", "s", seconds, size, goal=Goal(10.0),
            notes="counted by reconciles that ended in its own metrics; includes Python's start-up"),
    ]  # fmt: skip
    await asyncio.gather(*(subject.delete() for subject in subjects))
    return rows


def _write_rows(counts: Counter[str], size: int, common: str) -> list[Row]:
    events = sum(count for name, count in counts.items() if name.endswith(" events"))
    note = f"the user's POST counted, Leases left out: {apimetrics.describe(counts, size)}; {common}"
    return [
        Row("API writes per create → Ready", "", (counts.total() - events) / size, size, goal=Goal(3.0), notes=note),
        Row("API writes per create → Ready, with Events", "", counts.total() / size, size, goal=Goal(4.0), notes=note),
    ]


async def _restart_perdure(stage: Stage, size: int) -> float:
    await stage.stop_perdure()
    began = time.perf_counter()
    await stage.start_perdure("standalone")
    (daemon,) = stage.processes
    address = daemon.env["PERDURE_HTTP_ADDRESS"]
    observed = await eventually(lambda: _reconciles(address) >= size, "every runtime was looked at", OBSERVED_SECONDS)
    return observed - began


async def idle(stage: Stage, size: int, seconds: float) -> list[Row]:
    """What ``size`` Stopped objects cost while nothing happens."""
    say(f"    {size} Stopped objects, then {seconds:.0f} s of doing nothing")
    free = asyncio.Semaphore(AT_ONCE)

    async def stopped() -> Subject:
        async with free:
            subject = await Subject.create(stage, desiredState="Stopped")
            await subject.phase("Stopped", subject.began)
            return subject

    async def remove(subject: Subject) -> None:
        async with free:
            await subject.delete()

    subjects = await asyncio.gather(*(stopped() for _ in range(size)))
    before = await quiet(stage)
    await asyncio.sleep(STATISTICS_SECONDS)
    rows_before = await _written_rows(stage)
    cpu_before = stage.accounts.seconds()
    await asyncio.sleep(seconds)  # the span that is measured, not a wait for something
    cpu = spent(cpu_before, stage.accounts.seconds())
    await asyncio.sleep(STATISTICS_SECONDS)
    api, sql = apimetrics.writes(await stage.cluster.metrics()) - before, await _written_rows(stage) - rows_before
    resident = sum(_resident_mib(stage.process_of(daemon).pid) for daemon in stage.processes)
    roles = " and ".join(daemon.name.removeprefix("perdure-") for daemon in stage.processes)
    await asyncio.gather(*(remove(subject) for subject in subjects))
    who, common = f"idle, {size} Stopped objects", f"perdure {roles}, {seconds:.0f} s"
    return [
        Row(f"{who}: memory", "MiB", resident, 1, goal=Goal(130.0), notes=common),
        Row(f"{who}: CPU", "% of a core", cpu["perdure"] * 100 / seconds, 1, goal=Goal(0.5), notes=common),
        Row(f"{who}: API writes", "", api.total(), 1, goal=Goal(0.0),
            notes=f"{common}; Leases left out {apimetrics.describe(api, 1)}"),
        Row(f"{who}: SQL writes", "rows", sql.total(), 1, goal=Goal(0.0),
            notes=f"{common}; {apimetrics.describe(sql, 1)}"),
    ]  # fmt: skip


async def quiet(stage: Stage) -> Counter[str]:
    """The API server's count of writes once none has come for QUIET_SECONDS, or after QUIET_LIMIT_SECONDS anyway."""
    deadline = time.monotonic() + QUIET_LIMIT_SECONDS
    counts = apimetrics.writes(await stage.cluster.metrics())
    while True:
        await asyncio.sleep(QUIET_SECONDS)
        newer = apimetrics.writes(await stage.cluster.metrics())
        if newer == counts or time.monotonic() > deadline:
            return newer
        counts = newer


async def _written_rows(stage: Stage) -> Counter[str]:
    answer = await asyncio.to_thread(stage.environment.database.psql, WRITTEN_ROWS)
    pairs = (line.split("|") for line in answer.splitlines() if line)
    return Counter({table: int(count) for table, count in pairs})


def _reconciles(address: str) -> float:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as response:
        families = text_string_to_metric_families(response.read().decode())
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "perdure_reconciles_total" and sample.labels["outcome"] in ("healthy", "waiting")
        )


def _resident_mib(pid: int) -> float:
    fields = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) / 1024


def children_seconds() -> float:
    """CPU seconds of all child processes of the benchmark itself that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
