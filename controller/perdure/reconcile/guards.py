"""When a whole node must keep its hands off: too many objects absent at once, another cluster, another ledger.

Absence of objects is evidence of an accident far more often than of intent. The guards are asked before every plan, before
every step under a lease and before the janitor deletes, and told of every resync, of every new connection to the ledger
and of every lease.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, Uid
from perdure.plan.world import Freeze
from perdure.reconcile.ports.cluster import Objects
from perdure.reconcile.ports.errors import LedgerChanged, LedgerUnavailable, PortError
from perdure.reconcile.ports.journal import Journal
from perdure.reconcile.ports.ledger import LedgerIdentity

ABSENT_AT_LEAST = 3
ABSENT_SHARE = 0.10

log = structlog.get_logger(__name__)


def too_many_absent(absent: int, known: int) -> bool:
    """More than max(3, 10 %) of a node's runtimes."""
    return absent > max(ABSENT_AT_LEAST, ABSENT_SHARE * known)


class Guards:
    """The freeze of this node, if there is one. An identity that changed stays a freeze until the agent is restarted
    against the right cluster or ledger; mass absence ends when the objects are back, or a person accepts it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._identity: Freeze | None = None
        self._absence: Freeze | None = None
        self._lives: frozenset[Uid] = frozenset()
        self._absent: frozenset[Uid] = frozenset()
        self._accepted = journal.memory().accepted_absent
        self._one_at_a_time = asyncio.Lock()
        """What the node remembers is changed from what it remembers: never two changes from the same."""
        self._fence = journal.memory().highest_fence
        self._ledger_seen = False

    @property
    def freeze(self) -> Freeze | None:
        return self._identity or self._absence

    async def check_installation(self, installation: InstallationId) -> None:
        """Compare with the cluster that this node has belonged to so far; the first one is remembered."""
        async with self._one_at_a_time:
            memory = self._journal.memory()
            if memory.installation is None:
                await self._journal.commit(memory=replace(memory, installation=installation))
            elif memory.installation != installation:
                self._freeze_identity(
                    f"this node belongs to the cluster {memory.installation} (uid of kube-system), and the kubeconfig leads "
                    f"to {installation}: nothing is removed or archived. Give the agent the right kubeconfig, or "
                    "another state folder if the node is to move"
                )

    @property
    def highest_fence(self) -> int:
        """That this node has seen. Fences only rise: a ledger that is asked from now on knows of it."""
        return self._fence

    async def check_ledger(self, identity: LedgerIdentity, seen: int | None = None) -> None:
        """The same for the ledger; its highest fence must never go backwards. `seen`: `highest_fence` from before it was
        asked, where leases may have been taken meanwhile."""
        memory, seen = self._journal.memory(), self._fence if seen is None else seen
        if memory.ledger is not None and memory.ledger != identity.id:
            self._freeze_identity(
                f"the ledger is another one ({identity.id}) than before ({memory.ledger}): nothing is removed. Connect the "
                "agent to the right database"
            )
        elif identity.highest_fence < seen:
            self._freeze_identity(
                f"the ledger was put back to an earlier day: its highest fence is {identity.highest_fence}, this node has "
                f"seen {seen}. Nothing is removed"
            )
        elif self._identity is None:
            await self._remember(identity.id, identity.highest_fence)
            self._ledger_seen = True

    async def admit(self, identity: LedgerIdentity, seen: int) -> None:
        """See `LedgerJudge`: nothing more is said on a connection that leads elsewhere, so that no row is given to, and no
        "there is no data" taken from, a ledger that is not ours."""
        await self.check_ledger(identity, seen)
        self.trust_ledger()

    async def check_fence(self, fence: int, seen: int) -> None:
        """Of a lease that was taken; `seen`: `highest_fence` from before it was asked for. Raises `LedgerChanged` if the
        ledger gave out a number that it cannot have: an older state was put in its place under an open connection."""
        self.trust_ledger()
        if fence <= seen:
            self._freeze_identity(
                f"the ledger was put back to an earlier day: it gave out fence {fence}, this node has seen {seen}. Nothing "
                "is removed"
            )
            self.trust_ledger()
        await self._remember(self._journal.memory().ledger, fence)

    async def _remember(self, ledger: str | None, fence: int) -> None:
        self._fence = max(self._fence, fence)
        async with self._one_at_a_time:
            memory = self._journal.memory()
            if memory.ledger != ledger or memory.highest_fence < self._fence:
                await self._journal.commit(memory=replace(memory, ledger=ledger, highest_fence=self._fence))

    def trust_ledger(self) -> None:
        """Before anything destructive is done in the ledger's name. Raises `LedgerChanged` in another one's, and
        `LedgerUnavailable` as long as nobody has looked which one it is since this process began."""
        if self._identity is not None:
            raise LedgerChanged(self._identity.message)
        if not self._ledger_seen:
            raise LedgerUnavailable(
                "which ledger it is has not been checked yet since the agent began; that is done with its first connection"
            )

    def permit_removal(self) -> None:
        """Before data is deleted that no runtime's plan speaks of. Raises `PortError` while anything is frozen."""
        self.trust_ledger()
        if self._absence is not None:
            raise PortError(self._absence.message, reason=self._absence.reason)

    async def check_absence(self, objects: Objects) -> None:
        """After each full list: how many recorded lives have no object although nobody was seen deleting them.

        What was accepted counts anew once its object was back.
        """
        async with self._one_at_a_time:
            lives = [record for record in self._journal.records().values() if not record.released]
            absent = [record for record in lives if objects.get(record.ref.uid) is None and not record.deletion_seen]
            self._lives = frozenset(record.ref.uid for record in lives)
            self._absent = frozenset(record.ref.uid for record in absent)
            self._accepted &= self._absent
            self._judge()
            memory = self._journal.memory()
            if self._accepted != memory.accepted_absent:
                try:
                    await self._journal.commit(memory=replace(memory, accepted_absent=self._accepted))
                except PortError as error:
                    # What is true in memory holds; the next full list tries to write it down again.
                    log.warning("end_of_acceptance_not_journalled", error=str(error))

    async def accept_absence(self) -> frozenset[Uid]:
        """A person says that what is absent is meant to be: it counts no longer. Its data stays what it is.

        Returns all that is absent and accepted, now or before. Raises `PortError` where it cannot be journalled; then
        nothing more is accepted than before.
        """
        async with self._one_at_a_time:
            memory = self._journal.memory()
            if self._absent != memory.accepted_absent:
                await self._journal.commit(memory=replace(memory, accepted_absent=self._absent))
            self._accepted = self._absent
            self._judge()
            return self._accepted

    def _judge(self) -> None:
        absent, known = len(self._absent - self._accepted), len(self._lives - self._accepted)
        if too_many_absent(absent, known):
            message = (
                f"{absent} of this node's {known} runtimes have no object any more although none was seen being deleted: "
                "etcd may have been restored. They keep running; nothing is removed on this node until the objects are "
                "back, or an administrator accepts that they are gone: `perdure nodes accept-absence NODE`"
            )
            if self._absence is None:
                log.error("mass_absence", absent=absent, known=known)
            self._absence = Freeze(Reason.MASS_ABSENCE, message)
        elif self._absence is not None:
            log.info("mass_absence_over", absent=absent, known=known, accepted=len(self._accepted))
            self._absence = None

    def _freeze_identity(self, message: str) -> None:
        """The first cause stays: in another cluster the ledger looks wrong, too."""
        if self._identity is None:
            log.error("identity_changed", message=message)
            self._identity = Freeze(Reason.IDENTITY_CHANGED, message)
