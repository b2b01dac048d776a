"""When a whole node must keep its hands off: too many objects absent at once, another cluster, another ledger.

Absence of objects is evidence of an accident far more often than of intent. The guards are asked before every plan, and
looked at after every resync and every (re)connection.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, Uid
from perdure.plan.world import Freeze
from perdure.reconcile.ports.cluster import Objects
from perdure.reconcile.ports.errors import PortError
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

    async def check_ledger(self, identity: LedgerIdentity) -> None:
        """The same for the ledger; its highest fence must never go backwards."""
        async with self._one_at_a_time:
            memory = self._journal.memory()
            if memory.ledger is not None and memory.ledger != identity.id:
                self._freeze_identity(
                    f"the ledger is another one ({identity.id}) than before ({memory.ledger}): nothing is removed. Connect "
                    "the agent to the right database"
                )
            elif identity.highest_fence < memory.highest_fence:
                self._freeze_identity(
                    f"the ledger was put back to an earlier day: its highest fence is {identity.highest_fence}, this node "
                    f"has seen {memory.highest_fence}. Nothing is removed"
                )
            elif (memory.ledger, memory.highest_fence) != (identity.id, identity.highest_fence):
                newer = replace(memory, ledger=identity.id, highest_fence=identity.highest_fence)
                await self._journal.commit(memory=newer)

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
