"""Runtimes that ignore the stop signal for a day: they hold up nobody else, and nothing makes the day begin again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from tests.crash.clock import JumpingLoop
from tests.crash.plant import Agency, Survivors
from tests.crash.stopping_stories import ENDLESS
from tests.crash.stories import SPEC

from perdure.api.names import Kind
from perdure.api.runtime import DesiredState, Runtime, Stop
from perdure.plan.world import TaskState
from perdure.reconcile.task_steps import STOP_IN_PLACE_SECONDS

DEAF = 12
"""Three times as many as the process has workers."""
DAY = 86_400.0


class Node:
    def __init__(self, survivors: Survivors) -> None:
        self.survivors = survivors
        self.process = Agency(survivors)
        self.process.begin()

    async def restart(self) -> None:
        await self.process.end()
        self.process = Agency(self.survivors)
        self.process.begin()

    def runtime(self, name: str) -> Runtime:
        return self.survivors.cluster.runtimes[Kind.BOT, "agents", name]

    def edit(self, name: str, **changes: object) -> None:
        spec = msgspec.structs.replace(self.runtime(name).spec, **changes)
        self.survivors.cluster.edit(Kind.BOT, "agents", name, spec)

    def phase(self, name: str) -> str | None:
        return self.runtime(name).status.phase

    def alive(self, name: str) -> bool:
        runtime = self.runtime(name)
        container = next(
            (id_ for id_, it in self.survivors.machine.containers.items() if it.plan.ref.uid == runtime.uid), None
        )
        task = self.survivors.machine.tasks.get(container) if container is not None else None
        return task is not None and task.facts.state is TaskState.RUNNING

    async def stop_all(self) -> None:
        """Every deaf one is told to stop, and has been waited for as long as it is waited for at once."""
        for n in range(DEAF):
            self.edit(f"deaf-{n}", desired_state=DesiredState.STOPPED)
        await asyncio.sleep(20)
        assert {self.phase(f"deaf-{n}") for n in range(DEAF)} == {"Stopping"}
        assert all(self.alive(f"deaf-{n}") for n in range(DEAF))


def on_a_node(story: Callable[[Node], Awaitable[None]]) -> None:
    loop = JumpingLoop()

    async def run() -> None:
        survivors = Survivors(loop.time)
        node = Node(survivors)
        for n in range(DEAF):
            survivors.cluster.create(Kind.BOT, "agents", f"deaf-{n}", ENDLESS)
        survivors.cluster.create(Kind.BOT, "agents", "other", SPEC)
        await asyncio.sleep(20)
        assert node.phase("other") == "Running"
        await story(node)
        await node.process.end()
        assert not survivors.defects

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


def test_others_crash_start_stop_and_go_meanwhile() -> None:
    async def story(node: Node) -> None:
        await node.stop_all()
        machine, cluster = node.survivors.machine, node.survivors.cluster
        (other,) = [id_ for id_, it in machine.containers.items() if it.plan.ref.name == "other"]
        machine.end(other, 1)
        cluster.create(Kind.BOT, "agents", "late", SPEC)
        await asyncio.sleep(2)
        assert (node.phase("other"), node.runtime("other").status.restarts, node.alive("other")) == ("Running", 1, True)
        assert node.phase("late") == "Running"
        node.edit("other", desired_state=DesiredState.STOPPED)
        cluster.delete(Kind.BOT, "agents", "late")
        await asyncio.sleep(2)
        assert node.phase("other") == "Stopped"
        assert (Kind.BOT, "agents", "late") not in cluster.runtimes

    on_a_node(story)


def test_waiting_costs_no_calls() -> None:
    async def story(node: Node) -> None:
        await node.stop_all()
        before = len(node.survivors.calls)
        await asyncio.sleep(3600)
        made = {call.name for call in node.survivors.calls[before:]}
        assert not any(name.startswith(("journal.", "cluster.write", "engine.")) for name in made), made

    on_a_node(story)


def test_the_day_ends_when_it_ends_however_often_the_agent_is_started_again() -> None:
    async def story(node: Node) -> None:
        await node.stop_all()
        await asyncio.sleep(DAY / 2)
        await node.restart()
        await asyncio.sleep(DAY / 2 - 120)
        await node.restart()
        assert all(node.alive(f"deaf-{n}") for n in range(DEAF)), "nobody is killed before the time"
        await asyncio.sleep(120)
        assert {node.phase(f"deaf-{n}") for n in range(DEAF)} == {"Stopped"}

    on_a_node(story)


def test_one_that_ends_in_between_is_stopped_at_once() -> None:
    async def story(node: Node) -> None:
        await node.stop_all()
        machine = node.survivors.machine
        (deaf,) = [id_ for id_, it in machine.containers.items() if it.plan.ref.name == "deaf-3"]
        machine.end(deaf, 0, asked=True)
        await asyncio.sleep(1)
        assert (node.phase("deaf-3"), node.phase("deaf-4")) == ("Stopped", "Stopping")

    on_a_node(story)


def test_a_lower_grace_counts_from_the_signal_and_a_higher_one_as_well() -> None:
    async def story(node: Node) -> None:
        await node.stop_all()
        node.edit("deaf-0", stop=Stop(grace_period_seconds=5))
        node.edit("deaf-1", stop=Stop(grace_period_seconds=60))
        node.edit("deaf-2", stop=Stop(grace_period_seconds=2 * int(DAY)))
        await asyncio.sleep(1)
        assert [node.phase(f"deaf-{n}") for n in range(3)] == ["Stopped", "Stopping", "Stopping"]
        await asyncio.sleep(45)
        assert [node.phase(f"deaf-{n}") for n in range(3)] == ["Stopped", "Stopped", "Stopping"]
        await asyncio.sleep(DAY)
        assert [node.alive(f"deaf-{n}") for n in range(4)] == [False, False, True, False]

    on_a_node(story)


def test_one_that_is_wanted_again_at_once_is_started_when_it_has_been_stopped() -> None:
    async def story(node: Node) -> None:
        node.edit("deaf-0", desired_state=DesiredState.STOPPED, stop=Stop(grace_period_seconds=60))
        await asyncio.sleep(STOP_IN_PLACE_SECONDS / 2)
        node.edit("deaf-0", desired_state=DesiredState.RUNNING)
        await asyncio.sleep(50)
        machine = node.survivors.machine
        assert len(machine.starts) == DEAF + 1
        assert node.phase("deaf-0") == "Stopping"
        await asyncio.sleep(12)
        assert (len(machine.starts), node.phase("deaf-0")) == (DEAF + 2, "Running")
        assert node.runtime("deaf-0").status.restarts == 0

    on_a_node(story)
