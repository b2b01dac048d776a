"""The plan for an object that is to live: Running, Stopped or Removed, on data that is proven to be the right one.

Rules in order; the first that has something to do or a reason to wait decides. Order is safety: certainty first, then
data, then everything that could touch or use it.
"""

from __future__ import annotations

from perdure.api.runtime import Runtime
from perdure.plan import cleanup, data, first_rules, memory, network, probes, proof, requests, running, stopping
from perdure.plan.scene import Rule, Scene
from perdure.plan.steps import Plan
from perdure.plan.view import StatusDraft
from perdure.plan.world import World

_RULES: tuple[Rule, ...] = (
    proof.binding_is_proven,
    first_rules.spec_is_invalid,
    first_rules.engine_is_away,
    first_rules.life_is_over,
    first_rules.deletion_was_undone,
    requests.request_is_refused,
    first_rules.failed_lately,
    data.forgotten_operations_are_closed,
    data.orphan_is_adopted,
    data.put_away_is_remembered,
    data.workspace_must_exist,
    data.workspace_is_where_it_was,
    data.removal_is_taken_back,
    data.archive_is_out_of_date,
    cleanup.task_came_between,
    data.name_of_image,
    network.given_up_ports_lead_out,
    stopping.stop_is_wanted,
    stopping.stop_goes_on,
    data.restore_is_finished_first,
    running.process_ended,
    running.policy_leaves_it_stopped,
    network.network_fits,
    running.container_fits,
    running.task_runs,
    memory.kills_are_told,
    probes.results_count,
    network.network_is_whole,
)


def plan_wanted(world: World, runtime: Runtime, now: float) -> Plan:
    """The plan for a live object."""
    scene = Scene(world, runtime, now, StatusDraft(world, runtime))
    for rule in _RULES:
        plan = rule(scene)
        if plan is not None:
            return plan
    return running.healthy(scene)
