"""Which node a runtime goes to: decided once, by the controller, as a pure function of what nodes reported.

Least loaded first among those where it fits; a runtime with something to restore goes where that can be read, or nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from perdure.api.conditions import Reason
from perdure.api.names import NodeId, NodeName
from perdure.api.node import RuntimeNode
from perdure.api.quantity import InvalidQuantity, parse_bytes, parse_millicores
from perdure.api.runtime import RuntimeSpec

MAX_LABEL_LENGTH = 63
AMOUNTS_REMEMBERED = 2**14
"""Each choice counts what all bound runtimes ask for, and reading one takes as long as counting twenty."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """What is asked of a node, or what it has: thousandths of a core, bytes."""

    millicores: int = 0
    memory: int = 0

    def plus(self, other: Amounts) -> Amounts:
        return Amounts(self.millicores + other.millicores, self.memory + other.memory)

    def fits_into(self, free: Amounts) -> bool:
        return self.millicores <= free.millicores and self.memory <= free.memory


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as the controller knows it."""

    node: RuntimeNode
    alive: bool
    """Its heartbeat is fresh."""


@dataclass(frozen=True, slots=True)
class Chosen:
    name: NodeName
    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Refused:
    reason: Reason
    message: str


_NOT_REPORTING = "not reporting"
_OUT_OF_SERVICE = "out of service"
_GO_ON = "bring the node with the archive back, or set restore.policy: None to start on fresh data"
NOTHING_REFUSED: Mapping[NodeId, Refused] = MappingProxyType({})


def requested(spec: RuntimeSpec) -> Amounts:
    """What a runtime asks for. Text that is no quantity (stored before the CRD refused it) asks for nothing."""
    return _amounts(spec.resources.requests.cpu, spec.resources.requests.memory)


def allocatable(node: RuntimeNode) -> Amounts:
    """What a node offers."""
    return _amounts(node.status.allocatable.cpu, node.status.allocatable.memory)


@lru_cache(AMOUNTS_REMEMBERED)
def _amounts(cpu: str | int, memory: str | int) -> Amounts:
    try:
        return Amounts(parse_millicores(cpu), parse_bytes(memory))
    except InvalidQuantity:
        return Amounts()


def choose_node(
    spec: RuntimeSpec,
    candidates: Sequence[Candidate],
    used: Mapping[NodeId, Amounts],
    pinned: NodeId | None,
    without_ports: Mapping[NodeId, Refused] = NOTHING_REFUSED,
) -> Chosen | Refused:
    """The node to bind to. `used`: requests of what is bound already; `pinned`: the only node that can read the archive
    that would be restored; `without_ports`: nodes on which the ledger has not the ports that the spec asks for."""
    if pinned is not None and all(candidate.node.node_id != pinned for candidate in candidates):
        return Refused(
            Reason.ARCHIVE_NOT_REACHABLE,
            f"the archive to restore is in the local store of node {pinned}, which does not report; {_GO_ON}",
        )
    asked = requested(spec)
    reasons: dict[str, int] = {}
    way_on = ""
    fitting: list[tuple[float, NodeName, NodeId]] = []
    portless: list[tuple[NodeName, Refused]] = []
    for candidate in candidates:
        objection = _objection(spec, candidate, asked, used, pinned)
        if objection is None and candidate.node.node_id in without_ports:
            objection = "without its ports"
            portless.append((candidate.node.name, without_ports[candidate.node.node_id]))
        if objection is not None:
            reasons[objection] = reasons.get(objection, 0) + 1
            if candidate.node.node_id == pinned and objection in (_NOT_REPORTING, _OUT_OF_SERVICE):
                way_on = f"; {_GO_ON}"
            continue
        node = candidate.node
        fitting.append((_load(node, used.get(node.node_id, Amounts())), node.name, node.node_id))
    if fitting:
        _, name, node_id = min(fitting)
        return Chosen(name, node_id)
    if portless:
        # All else would fit there: what must change is the port, or who has it.
        return min(portless, key=lambda found: found[0])[1]
    if not candidates:
        return Refused(Reason.UNSCHEDULABLE, "no node reports: start `perdure agent` on a node")
    told = ", ".join(f"{count} {why}" for why, count in sorted(reasons.items()))
    return Refused(Reason.UNSCHEDULABLE, f"none of {len(candidates)} nodes can take it: {told}{way_on}")


def _objection(
    spec: RuntimeSpec,
    candidate: Candidate,
    asked: Amounts,
    used: Mapping[NodeId, Amounts],
    pinned: NodeId | None,
) -> str | None:
    node = candidate.node
    if spec.node_name is not None and node.name != spec.node_name:
        return "not named by spec.nodeName"
    if any(node.labels.get(key) != value for key, value in spec.node_selector.items()):
        return "not matching spec.nodeSelector"
    if pinned is not None and node.node_id != pinned:
        return "without the archive to restore"
    if not candidate.alive or not node.node_id:
        return _NOT_REPORTING
    if node.terminating or node.out_of_service:
        return _OUT_OF_SERVICE
    if node.spec.unschedulable:
        return "cordoned"
    if len(node.name) > MAX_LABEL_LENGTH:
        return f"with a name of more than {MAX_LABEL_LENGTH} characters"
    free = allocatable(node)
    taken = used.get(node.node_id, Amounts())
    if not asked.plus(taken).fits_into(free):
        return "without room for its requests"
    return None


def _load(node: RuntimeNode, taken: Amounts) -> float:
    """The fuller of the two: a node that has one core and one that has a hundred are compared by share."""
    offers = allocatable(node)
    return max(
        taken.millicores / offers.millicores if offers.millicores else 1.0,
        taken.memory / offers.memory if offers.memory else 1.0,
    )
