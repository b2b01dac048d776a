"""Nothing is cleaned up before its time, whatever the wall clock does; and everything is, soon after.

True time goes on evenly. The wall clock is set again and again, by up to five minutes either way of the truth; the machine
may be rebooted, the agent is away at times, and the time to keep is edited while somebody waits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from tests.property.lives import edit
from tests.property.test_plan_rests import healthy_world
from tests.property.worlds import NOW, Draw

from perdure.api.phases import Phase
from perdure.api.runtime import DesiredState
from perdure.plan.certainty import Absent
from perdure.plan.cleanup import CLOCK_ERROR_SECONDS
from perdure.plan.planner import plan
from perdure.plan.steps import Begin
from perdure.plan.uptime import Uptime
from perdure.plan.world import Op, Source, Wanted, World

CASES = 10_000
TTLS = {"0s": 0.0, "1500ms": 1.5, "7s": 7.0, "5m": 300.0, "1h30m": 5400.0, "720h": 2_592_000.0, "Never": None}
LOOKS = 8


@dataclass(slots=True)
class Machine:
    """`true` is the time that everybody agrees on afterwards; `wall` is what the machine believes."""

    true: float = NOW
    error: float = 0.0
    boots: int = 1

    @property
    def wall(self) -> float:
        return self.true + self.error

    @property
    def uptime(self) -> Uptime:
        return Uptime(f"boot-{self.boots}", self.true - NOW)


def _is_of_no_use(world: World) -> bool:
    workspace = world.record.workspace
    return world.record.running or workspace is None or workspace.gate is not None


@cache
def _stopped_worlds() -> tuple[World, ...]:
    return tuple(world for world in (healthy_world(Draw(seed)) for seed in range(300)) if not _is_of_no_use(world))


def stopped_world(draw: Draw, machine: Machine, ended: float) -> World:
    """A runtime that has just been found stopped. `ended`: by the wall clock of that instant."""
    world = draw.of(_stopped_worlds())
    assert isinstance(world.desired, Wanted)
    runtime = edit(world.desired.runtime, spec=edit(world.desired.runtime.spec, desired_state=DesiredState.STOPPED))
    record = replace(world.record, halted=None, stopped_at=ended, stopped_up=machine.uptime, phase=Phase.STOPPED)
    observed = replace(world.observed, task=Absent(), container=Absent(), sandbox=Absent())
    return replace(world, desired=Wanted(runtime), observed=observed, record=record, failure=None, freeze=None)


def is_begun(world: World, machine: Machine) -> bool:
    made = plan(replace(world, uptime=machine.uptime), machine.wall)
    begun = [step for step in made.steps if isinstance(step, Begin) and step.op is Op.CLEANUP]
    assert all(step.source is Source.AUTO_TTL for step in begun)
    return bool(begun)


def with_ttl(world: World, text: str) -> World:
    assert isinstance(world.desired, Wanted)
    runtime = world.desired.runtime
    return replace(world, desired=Wanted(edit(runtime, spec=edit(runtime.spec, stopped_ttl=text))))


def one_case(seed: int) -> bool:
    """Whether it was cleaned up. Fails if that was too early, or if it was not done long after its time."""
    draw = Draw(seed)
    machine = Machine(error=draw.of((0.0, 0.0, -300.0, 300.0)))
    ended_true, ended_wall = machine.true, machine.wall
    machine.true += draw.of((0.0, 0.01, 1.0, 120.0))
    if draw.chance(0.3):
        machine.error = draw.of((0.0, -300.0, 300.0))
    world = stopped_world(draw, machine, ended_wall)
    recorded = machine.true
    for _ in range(LOOKS):
        text = draw.of(tuple(TTLS))
        ttl, world = TTLS[text], with_ttl(world, text)
        near = (ttl or 0.0) + draw.of((-1000.0, -301.0, -1.0, -0.01, 0.0, 0.01, 299.0, 301.0, 601.0))
        machine.true = max(machine.true + draw.of((0.0, 0.1)), ended_true + near)
        if draw.chance(0.5):
            machine.error = draw.of((0.0, -300.0, -7.0, 7.0, 300.0))
        if draw.chance(0.15):
            machine.boots += 1
        if is_begun(world, machine):
            assert ttl is not None
            assert machine.true - ended_true >= ttl - 1e-3 or ttl == 0, (seed, text, machine)
            return True
    world = with_ttl(world, "7s")
    machine.true = max(machine.true, recorded) + 7 + 3 * CLOCK_ERROR_SECONDS
    assert is_begun(world, machine), (seed, machine)
    return False


def test_ten_thousand_times_it_is_never_too_early_and_never_forgotten() -> None:
    done_early_on = sum(one_case(seed) for seed in range(CASES))
    assert CASES / 10 < done_early_on < CASES, "else the cases above would say little"
