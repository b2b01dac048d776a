"""The controller's loop: binds what is unbound, lets go of what the ledger says is over, keeps archives' objects in step.

It touches no container and no data. Called with one key at a time by its own workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.names import ANNOTATION_HOST_PORTS, NamespaceUid, NodeId, NodeName, RuntimeRef, Uid
from perdure.api.phases import Phase
from perdure.api.runtime import Condition, Runtime, RuntimeStatus
from perdure.plan.allotment import (
    DEFAULT_RANGE,
    PortDemand,
    PortRange,
    are_published,
    refused_by_pod_security,
    wanted_ports,
)
from perdure.plan.binding import Amounts, Candidate, Chosen, Refused, choose_node, requested
from perdure.plan.certainty import Absent
from perdure.plan.view import archive_name
from perdure.plan.world import ArchiveFacts
from perdure.reconcile.namespaces import RecentNamespaces
from perdure.reconcile.ports.cluster import ControllerCluster, NamespaceFacts, Objects, Published
from perdure.reconcile.ports.errors import ApiUnavailable, PortError, StatusConflict
from perdure.reconcile.ports.ledger import Binding, BoundRow, ControllerLedger
from perdure.reconcile.queue import KeyedQueue
from perdure.reconcile.refusals import Refusals

RETRY_SECONDS = 5.0
"""While something is away."""
ARCHIVES_AT_ONCE = 100
UNPUBLISHED_SECONDS = 60.0
"""A node shows the ports of what it starts sooner than this; what it never showed it may never have heard of."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Office:
    """The parts that the binder works with."""

    cluster: ControllerCluster
    ledger: ControllerLedger
    objects: Objects
    queue: KeyedQueue[Uid]
    candidates: Callable[[], Sequence[Candidate]]
    ports_within: PortRange = DEFAULT_RANGE


@dataclass(frozen=True, slots=True)
class _Claim:
    """A binding as labels publish it."""

    node_name: NodeName | None
    node_id: NodeId | None
    namespace_uid: NamespaceUid | None


class Binder:
    """One per active controller."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._bound_here: dict[Uid, NodeId] = {}
        """Bindings of this process whose labels may not have come back through the watch yet: they count as load."""
        self._proven: dict[Uid, _Claim] = {}
        """What the ledger has, as this process read or wrote it: labels that say the same need not be asked about."""
        self._unproven: set[Uid] = set()
        """Objects whose labels claim a binding that the ledger has not: they are no load, and it is told once."""
        self._refused: dict[Uid, str] = {}
        """Why ports of bound runtimes cannot be had, as it was told in an Event: it is told once."""
        self._refusals = Refusals(office.queue)
        self._namespaces = RecentNamespaces(self._read_namespace)
        self._last_archive: dict[Uid, str] = {}
        """As the status of each runtime names it."""
        self.archive_seen = asyncio.Event()
        """Set when a status names an archive that it did not name before: the catalogue has one that is to be published."""

    async def handle(self, uid: Uid) -> None:
        """Bring one object as far as the controller can now."""
        runtime = self._office.objects.get(uid)
        if runtime is None:
            self._refusals.forget(uid)
            if uid in self._bound_here or uid in self._proven:
                self._refusals.wake()
            self._bound_here.pop(uid, None)
            self._proven.pop(uid, None)
            self._unproven.discard(uid)
            self._refused.pop(uid, None)
            self._last_archive.pop(uid, None)
            return
        archive = runtime.status.last_archive
        if archive is not None and self._last_archive.get(uid) != archive:
            self._last_archive[uid] = archive
            self.archive_seen.set()
        try:
            if runtime.terminating:
                self._refusals.forget(uid)
                await self._let_go(runtime)
            elif _is_settled(runtime) and await self._is_proven(runtime):
                self._refusals.forget(uid)
            else:
                await self._bind(runtime)
        except StatusConflict:
            log.debug("object_changed_meanwhile", runtime=runtime.key, uid=uid)
            self._office.queue.add_in(uid, RETRY_SECONDS)
        except PortError as error:
            log.warning("binding_waits", runtime=runtime.key, uid=uid, error=str(error))
            await self._tell(runtime, error.reason, str(error))
            self._office.queue.add_in(uid, RETRY_SECONDS)

    # ------------------------------------------------------------------------------------------ binding

    async def _is_proven(self, runtime: Runtime) -> bool:
        """Whether the ledger has the binding that the labels publish: anybody who may write the object can write those."""
        claim = _claim(runtime)
        if self._proven.get(runtime.uid) == claim:
            return True
        if claim.namespace_uid is None:
            return False
        row = await self._office.ledger.read(runtime.ref(claim.namespace_uid), runtime.spec.restore)
        if row.binding is None or claim != _Claim(row.binding.node_name, row.binding.node_id, row.namespace_uid):
            return False
        self._proven[runtime.uid] = claim
        return True

    async def _bind(self, runtime: Runtime) -> None:
        if runtime.invalid is not None:
            await self._tell(runtime, Reason.INVALID_SPEC, runtime.invalid, phase=Phase.FAILED)
            return
        namespace = await self._namespaces.get(runtime.namespace, since=self._refusals.known_since(runtime.uid))
        ref = runtime.ref(namespace.uid)
        row = await self._office.ledger.read(ref, runtime.spec.restore)
        if row.binding is None and runtime.node_id is not None:
            await self._tell_of_claim(runtime)
        forbidden = refused_by_pod_security(runtime.spec, namespace.enforce, self._office.ports_within)
        answer = forbidden or await self._place(runtime, ref, row)
        if isinstance(answer, Binding):
            await self._publish(runtime, answer, namespace)
            if row.binding is not None:
                self._refusals.wake()  # an edit may have given ports back
            return
        if row.binding is None:
            await self._tell(runtime, answer.reason, answer.message)
        else:
            await self._tell_of_ports(runtime, answer)
        self._refusals.add(runtime.uid, runtime.generation)

    async def _place(self, runtime: Runtime, ref: RuntimeRef, row: BoundRow) -> Binding | Refused:
        """The binding and its ports, as the ledger has them or takes them."""
        bind, image = self._office.ledger.bind, runtime.spec.image
        demand = PortDemand(wanted_ports(runtime.spec), self._office.ports_within)
        if row.binding is not None:
            return await bind(ref, row.binding.node_name, row.binding.node_id, image, demand)
        without_ports: dict[NodeId, Refused] = {}
        while True:
            chosen = self._choose(runtime, row, without_ports)
            if isinstance(chosen, Refused):
                return chosen
            ours_to_give = bool(demand.ports) and not _has_lived(runtime)
            answer = await bind(ref, chosen.name, chosen.node_id, image, demand if ours_to_give else None)
            if isinstance(answer, Binding):
                # Of what has lived the ledger was put back: the numbers that people were told stay as published.
                return answer if ours_to_give else replace(answer, ports=tuple(runtime.host_ports.items()))
            without_ports[chosen.node_id] = answer

    def _choose(self, runtime: Runtime, row: BoundRow, without_ports: Mapping[NodeId, Refused]) -> Chosen | Refused:
        used: dict[NodeId, Amounts] = {}
        for uid in self._office.objects.uids():
            other = self._office.objects.get(uid)
            if other is None or uid == runtime.uid:
                continue
            node_id = other.node_id if uid not in self._unproven else None
            if node_id is None and other.uid in self._bound_here:
                node_id = self._bound_here[other.uid]
            if node_id is not None:
                used[node_id] = used.get(node_id, Amounts()).plus(requested(other.spec))
        pinned = row.latest_node if row.archive_known else None
        candidates = self._office.candidates()
        if _has_lived(runtime):
            # The ledger was put back to before it was bound. Its data is on that node, or nowhere.
            candidates = [candidate for candidate in candidates if candidate.node.node_id == runtime.node_id]
        return choose_node(runtime.spec, candidates, used, pinned, without_ports)

    async def _publish(self, runtime: Runtime, binding: Binding, namespace: NamespaceFacts) -> None:
        self._bound_here[runtime.uid] = binding.node_id
        self._unproven.discard(runtime.uid)
        self._refused.pop(runtime.uid, None)
        self._refusals.forget(runtime.uid)
        ports = dict(binding.ports)
        bound = await self._office.cluster.bind(runtime, binding.node_name, binding.node_id, namespace.uid, ports)
        self._proven[runtime.uid] = _Claim(binding.node_name, binding.node_id, namespace.uid)
        self._office.objects.put(bound)
        log.info(
            "bound", runtime=runtime.key, uid=runtime.uid, node=binding.node_name, **({"ports": ports} if ports else {})
        )

    async def _read_namespace(self, name: str) -> NamespaceFacts:
        namespace = await self._office.cluster.get_namespace(name)
        if namespace is None:
            raise ApiUnavailable(f"namespace {name} is not there (yet)")
        return namespace

    # ------------------------------------------------------------------------------------------ deletion

    async def _let_go(self, runtime: Runtime) -> None:
        """Take the finalizer off once the ledger says that the data is safe, purged or was never there."""
        if not runtime.protected:
            return
        claimed = runtime.namespace_uid or (await self._read_namespace(runtime.namespace)).uid
        row = await self._office.ledger.read(runtime.ref(claimed), runtime.spec.restore)
        ref = runtime.ref(row.namespace_uid or (await self._read_namespace(runtime.namespace)).uid)
        reason = runtime.force_release
        if reason is not None:
            await self._office.ledger.force_release(ref, reason)
            log.warning("released_by_force", runtime=runtime.key, uid=runtime.uid, why=reason)
        else:
            if row.binding is None and not _has_lived(runtime):
                log.info("never_bound", runtime=runtime.key, uid=runtime.uid)
            elif not row.released:
                return
            await self._show_archives_of(ref)
        if runtime.spec.ports or ANNOTATION_HOST_PORTS in runtime.annotations:
            # Also when the data is preserved: who restores it has another uid, and gets numbers of its own.
            await self._office.ledger.free_ports(ref)
        await self._office.cluster.release(runtime)
        self._refusals.wake()
        log.info("released", runtime=runtime.key, uid=runtime.uid)

    async def _show_archives_of(self, ref: RuntimeRef) -> None:
        """Before a runtime goes its archives have objects, and those that were purged have none. Raises `PortError`."""
        async for facts in _all(self._office.ledger.unpublished, ref):
            await self._publish_archive(facts)
        async for facts in _all(self._office.ledger.purged, ref):
            await self._unpublish_archive(facts)

    async def publish_archives(self) -> None:
        """Make all RuntimeArchive objects equal to the catalogue; one that cannot be written does not stop the others.
        Raises `LedgerUnavailable`."""
        async for facts in _all(self._office.ledger.unpublished):
            await self._unless_it_fails(facts, self._publish_archive)
        async for facts in _all(self._office.ledger.purged):
            await self._unless_it_fails(facts, self._unpublish_archive)

    async def _unless_it_fails(self, facts: ArchiveFacts, act: Callable[[ArchiveFacts], Awaitable[None]]) -> None:
        try:
            await act(facts)
        except PortError as error:
            log.warning("archive_object_not_in_step", archive=facts.sequence, uid=facts.uid, error=str(error))

    async def _publish_archive(self, facts: ArchiveFacts) -> None:
        published = await self._office.cluster.publish_archive(facts)
        if published is Published.NAMESPACE_GONE:
            log.info("archive_has_no_object", archive=facts.sequence, namespace=facts.namespace)
        await self._office.ledger.published(facts.sequence, archive_name(facts))

    async def _unpublish_archive(self, facts: ArchiveFacts) -> None:
        await self._office.cluster.unpublish_archive(facts)
        await self._office.ledger.unpublish(facts.sequence)

    # ------------------------------------------------------------------------------------------ ports

    async def free_abandoned_ports(self) -> None:
        """Give back what lives have that ended without us: their objects are gone, proven by a look past the cache.

        A life whose ports were published keeps them until the ledger has it that it is over: its container may run.
        Raises `LedgerUnavailable`.
        """
        for ref in await self._office.ledger.abandoned_ports(UNPUBLISHED_SECONDS):
            if self._office.objects.get(ref.uid) is not None:
                continue
            if isinstance(await self._office.cluster.look_up(ref), Absent):
                await self._office.ledger.free_ports(ref)
                self._refusals.wake()
                log.info("ports_freed", runtime=str(ref), uid=ref.uid)

    # ------------------------------------------------------------------------------------------ telling

    async def _tell_of_claim(self, runtime: Runtime) -> None:
        """Labels claim a binding that the ledger has not: whoever wrote them is to know that they were not believed."""
        if runtime.uid in self._unproven:
            return
        self._unproven.add(runtime.uid)
        message = (
            f"its labels say that it is bound to node {runtime.node_name} ({runtime.node_id}), and the ledger has no such "
            "binding: they were written by hand, or the ledger was put back to an earlier day. It is bound anew"
        )
        log.warning("binding_not_in_ledger", runtime=runtime.key, uid=runtime.uid, node_id=runtime.node_id)
        await self._office.cluster.emit(runtime, reason=Reason.NOT_BOUND.value, message=message, warning=True)

    async def _tell_of_ports(self, runtime: Runtime, refused: Refused) -> None:
        """The status of a bound runtime is its node's to write; what it has already stays in force."""
        if self._refused.get(runtime.uid) == refused.message:
            return
        self._refused[runtime.uid] = refused.message
        log.info("ports_refused", runtime=runtime.key, uid=runtime.uid, reason=refused.reason, why=refused.message)
        await self._office.cluster.emit(runtime, reason=refused.reason.value, message=refused.message, warning=True)

    async def _tell(self, runtime: Runtime, reason: Reason, message: str, *, phase: Phase = Phase.PENDING) -> None:
        """Until it is bound the controller owns the status; from then on the node's agent does."""
        if runtime.node_id is not None and not self._is_nobodys(runtime):
            return
        conditions = tuple(
            Condition(
                type=type_.value,
                status=Truth.FALSE.value,
                reason=reason.value,
                message=message[:1024],
                observed_generation=runtime.generation,
            )
            for type_ in (ConditionType.SCHEDULED, ConditionType.READY)
        )
        status = RuntimeStatus(phase=phase.value, observed_generation=runtime.generation, conditions=conditions)
        try:
            self._office.objects.learn(await self._office.cluster.write_status(runtime, status))
        except PortError as error:
            log.info("status_not_written", runtime=runtime.key, uid=runtime.uid, error=str(error))

    def _is_nobodys(self, runtime: Runtime) -> bool:
        """Its labels claim a binding, no agent will say that there is none, and its status is no evidence of data."""
        heard = _claims_all(runtime) and any(
            candidate.node.node_id == runtime.node_id for candidate in self._office.candidates()
        )
        return runtime.uid in self._unproven and not heard and not _has_lived(runtime)


class _Pages(Protocol):
    async def __call__(self, limit: int, *, after: int = 0, of: RuntimeRef | None = None) -> Sequence[ArchiveFacts]: ...


async def _all(pages: _Pages, of: RuntimeRef | None = None) -> AsyncIterator[ArchiveFacts]:
    """One pass. What could not be dealt with is passed by, and is seen again in the next pass: it blocks nobody."""
    after = 0
    while page := await pages(ARCHIVES_AT_ONCE, after=after, of=of):
        for facts in page:
            yield facts
        after = page[-1].sequence
        if len(page) < ARCHIVES_AT_ONCE:
            return


def _claim(runtime: Runtime) -> _Claim:
    return _Claim(runtime.node_name, runtime.node_id, runtime.namespace_uid)


def _claims_all(runtime: Runtime) -> bool:
    """It looks to an agent as a binding does."""
    return runtime.protected and runtime.node_id is not None and runtime.namespace_uid is not None


def _has_lived(runtime: Runtime) -> bool:
    """Its status shows a container or data, on the node that its labels name."""
    status = runtime.status
    shown = status.snapshot_key or status.container_id or status.last_archive
    return runtime.node_id is not None and shown is not None


def _is_settled(runtime: Runtime) -> bool:
    """Bound, and its ports are published. The ports of a spec that cannot be read are left as they are."""
    return _claims_all(runtime) and (runtime.invalid is not None or are_published(runtime))
