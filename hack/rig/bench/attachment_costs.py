"""What the parts of attaching cost alone, and what looking after fifty healthy runtimes costs. Called by ``rig.bench.network``.

CPU is the benchmark's own and its children's, in which the kernel's own threads, which clear namespaces away, do not count.
"""

import asyncio
import resource
import stat
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from perdure.api.names import Kind, NamespaceUid, RuntimeRef, Uid
from perdure.api.network import Network, NetworkMode
from perdure.api.runtime import RuntimeSpec
from perdure.plan.world import HostPort
from perdure.reconcile.ports.sandbox import SandboxPlan
from rig.bench.attaching import CONTAINER_PORT, Attaching, attachment_at, open_attaching
from rig.bench.cluster import BenchmarkError
from rig.bench.networked import notes, tell
from rig.bench.results import Goal, Row, Timing
from rig.bench.stage import IMAGE, Stage, free_ports
from rig.network import PLUGIN_DIRECTORIES
from rig.progress import say

LOOKED_AFTER = 50
LOOKS = 20
AT_ONCE = 4
"""Attachments that are made, or removed, at the same time."""


@dataclass(slots=True)
class Meter:
    """Wall and CPU seconds of operations by name."""

    wall: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """What happens inside is one operation of that name; nothing else may happen meanwhile."""
        cpu, began = _cpu_seconds(), time.perf_counter()
        yield
        self.wall[name].append(time.perf_counter() - began)
        self.cpu[name] += _cpu_seconds() - cpu

    def rows(self, what: str, notes: str) -> list[Row]:
        """Percentiles of the time, and the mean CPU time, of each operation."""
        found: list[Row] = []
        for name, seconds in self.wall.items():
            found += Timing(f"{name}, {what}", seconds, notes=notes).rows()
            mean = self.cpu[name] * 1000 / len(seconds)
            found.append(Row(f"{name}, {what}: CPU", "ms", mean, len(seconds), notes=notes))
        return found


async def parts(stage: Stage, configured: Path, n: int, *, port: bool) -> list[Row]:
    """``n`` times, one after another: the whole, and what it is made of."""
    meter, what = Meter(), "portmap and one port" if port else "bridge alone"
    async with open_attaching(stage.environment, configured) as attaching:
        for i in range(n):
            tell(f"parts of attaching, {what}", i, n)
            await _attach_once(attaching, meter, free_ports(1)[0] if port else None)
    return meter.rows(what, f"one at a time; {notes(stage)}")


async def _attach_once(attaching: Attaching, meter: Meter, port: int | None) -> None:
    sandbox, upkeep = attaching.networks.sandbox, attaching.networks.upkeep
    plan = _plan(port)
    uid = plan.ref.uid
    with meter.measuring("network namespace made"):
        await sandbox.create(plan)
    with meter.measuring("attached: ADD, firewall, record"):
        await sandbox.attach(plan)
    with meter.measuring("observed"):
        await sandbox.observe(plan.ref)
    attached = upkeep.attachments.get(uid)
    if attached is None:
        raise BenchmarkError(f"{uid} was attached and is on no record")
    with meter.measuring("firewall: expel"):
        await upkeep.isolation.expel(uid)
    with meter.measuring("firewall: admit"):
        await upkeep.isolation.admit(attached)
    attachment = replace(attachment_at(upkeep.names / uid, port), container_id=upkeep.sandbox.settings.ids.id(uid))
    with meter.measuring("DEL"):
        await upkeep.client.delete(attaching.network, attachment)
    with meter.measuring("ADD"):
        await upkeep.client.add(attaching.network, attachment)
    with meter.measuring("removed: firewall, DEL, record, namespace"):
        await sandbox.remove(plan.ref)


async def upkeep(stage: Stage, configured: Path) -> list[Row]:
    """Looks over fifty attached runtimes that nothing is wrong with, each with a port."""
    say(f"    upkeep of {LOOKED_AFTER} healthy runtimes")
    executions = stage.environment.directory / "plugin-executions"
    counting = counted_plugins(PLUGIN_DIRECTORIES, stage.environment.directory / "counted-plugins", executions)
    meter, what = Meter(), f"{LOOKED_AFTER} healthy runtimes with a port each"
    async with open_attaching(stage.environment, configured, (counting,)) as attaching, _attached(attaching):
        while_attaching = _lines(executions)
        if while_attaching < LOOKED_AFTER:
            raise BenchmarkError(f"{executions} counts {while_attaching} executions of plugins in {LOOKED_AFTER} ADDs")
        for _ in range(LOOKS):
            with meter.measuring("upkeep's look"):
                await attaching.networks.upkeep.look()
        executed = _lines(executions) - while_attaching
        if attaching.damaged:
            raise BenchmarkError(f"upkeep found healthy networks damaged: {attaching.damaged}")
    common = f"firewall, interfaces and port rules compared; every 30 s in an agent; {notes(stage)}"
    counted = f"{while_attaching} while they were attached; {common}"
    return [
        *meter.rows(what, common),
        Row(f"upkeep's look, {what}: plugin executions", "", executed, LOOKS, goal=Goal(0.0), notes=counted),
    ]


@asynccontextmanager
async def _attached(attaching: Attaching) -> AsyncIterator[None]:
    sandbox, free = attaching.networks.sandbox, asyncio.Semaphore(AT_ONCE)

    async def attach(plan: SandboxPlan) -> None:
        async with free:
            await sandbox.create(plan)
            await sandbox.attach(plan)

    async def remove(plan: SandboxPlan) -> None:
        async with free:
            await sandbox.remove(plan.ref)

    plans = [_plan(port) for port in free_ports(LOOKED_AFTER)]
    await asyncio.gather(*map(attach, plans))
    yield
    await asyncio.gather(*map(remove, plans))


def counted_plugins(real: Sequence[Path], folder: Path, executions: Path) -> Path:
    """``folder`` with a stand-in for each plugin of ``real``, which adds a line to ``executions`` and becomes the plugin."""
    folder.mkdir()
    executions.touch()
    for directory in reversed(real):
        for plugin in directory.glob("*"):
            stand_in = folder / plugin.name
            stand_in.write_text(f'#!/bin/sh\necho "$CNI_COMMAND" >> {executions}\nexec {plugin} "$@"\n')
            stand_in.chmod(stat.S_IRWXU)
    return folder


def _plan(port: int | None) -> SandboxPlan:
    ref = RuntimeRef(Kind.BOT, "bench", uuid.uuid4().hex[:12], Uid(str(uuid.uuid4())), NamespaceUid(str(uuid.uuid4())))
    ports = () if port is None else (HostPort("web", "TCP", CONTAINER_PORT, port),)
    return SandboxPlan(ref, RuntimeSpec(image=IMAGE, network=Network(mode=NetworkMode.CNI)), ports)


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
