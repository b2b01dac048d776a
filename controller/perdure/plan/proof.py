"""The rule before all others: a life that this node knows nothing of is bound here only if the ledger has it so.

Labels and finalizers are anybody's to write who may write the object. What they claim decides whose archives are looked
at and who may connect, so nothing is planned on a claim: the controller wrote the truth down before it published it.
"""

from __future__ import annotations

from dataclasses import replace

from msgspec import structs

from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.names import LABEL_NAMESPACE_UID, LABEL_NODE, LABEL_NODE_ID
from perdure.api.phases import Phase
from perdure.plan.certainty import Present
from perdure.plan.scene import Scene
from perdure.plan.steps import Plan
from perdure.plan.world import Bound

RETRY_SECONDS = 5.0
_NOT_BOUND = (
    "its labels say that it is bound to this node, and the ledger has it otherwise: they were written by hand, or the ledger "
    "was put back to an earlier day. Nothing is made, restored or removed for it. The controller binds it anew as soon as "
    f"a node can take it; to be rid of it delete it, and create it without the labels {LABEL_NODE}, {LABEL_NODE_ID} and "
    f"{LABEL_NAMESPACE_UID}"
)


def binding_is_proven(scene: Scene) -> Plan | None:
    """None once it is. Proven once is enough: the journal keeps the identity, and labels are not read for it again."""
    world = scene.world
    if world.recorded:
        return None
    until = scene.now + RETRY_SECONDS
    match world.observed.ledger:
        case Present(it=facts):
            if facts.bound is not None and facts.bound == _claim(scene):
                return None
            scene.draft.set(ConditionType.SCHEDULED, Truth.FALSE, Reason.NOT_BOUND, _NOT_BOUND)
            phase = Phase.BLOCKED if scene.snapshots else Phase.PENDING
            return _told_beside(scene, scene.wait(Reason.NOT_BOUND, _NOT_BOUND, until=until, phase=phase))
        case _:
            reason = Reason.LEDGER_UNAVAILABLE
            message = "the ledger cannot be asked whether it is bound to this node, so nothing is done yet"
            if world.freeze is not None and world.freeze.reason is Reason.IDENTITY_CHANGED:
                reason, message = world.freeze.reason, f"nothing is done yet: {world.freeze.message}"
            # What is shown of it stays: that the ledger is away for a moment says nothing new about what may be running.
            phase = Phase(scene.runtime.status.phase or Phase.PENDING)
            return _told_beside(scene, scene.wait(reason, message, until=until, phase=phase))


def _told_beside(scene: Scene, plan: Plan) -> Plan:
    """What the status shows of data is evidence that there was some: only what is known better replaces it."""
    told = plan.status
    if told is None:
        return plan
    shown = scene.runtime.status
    return replace(
        plan,
        status=structs.replace(
            shown, phase=told.phase, observed_generation=told.observed_generation, conditions=told.conditions
        ),
    )


def _claim(scene: Scene) -> Bound | None:
    node_id = scene.runtime.node_id
    return Bound(node_id, scene.world.ref.namespace_uid) if node_id is not None else None
