"""The planner's door: one look at one runtime and the time, to one plan. Called by the reconciler after each look."""

from __future__ import annotations

from typing import assert_never

from perdure.plan.deletion import plan_deletion, plan_gone
from perdure.plan.steps import Plan
from perdure.plan.wanted import plan_wanted
from perdure.plan.world import Gone, Terminating, Unseen, Wanted, World


def plan(world: World, now: float) -> Plan:
    """What to do next. Total and deterministic: no clock (`now` is seconds since the epoch), no I/O, no exceptions."""
    match world.desired:
        case Wanted(runtime):
            return plan_wanted(world, runtime, now)
        case Terminating(runtime):
            return plan_deletion(world, runtime, now)
        case Gone():
            return plan_gone(world, now)
        case Unseen():
            return Plan()
        case never:
            assert_never(never)
