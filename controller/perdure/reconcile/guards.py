"""When a whole node must keep its hands off: too many objects absent at once, another cluster, another ledger.

Absence of objects is evidence of an accident far more often than of intent. The guards are asked before every plan, and
looked at after every resync and every (re)connection.
"""

from __future__ import annotations

import structlog

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId
from perdure.plan.world import Freeze
from perdure.reconcile.ports.journal import Journal, NodeMemory
from perdure.reconcile.ports.ledger import LedgerIdentity

ABSENT_AT_LEAST = 3
ABSENT_SHARE = 0.10

log = structlog.get_logger(__name__)


def too_many_absent(absent: int, known: int) -> bool:
    """More than max(3, 10 %) of a node's runtimes."""
    return absent > max(ABSENT_AT_LEAST, ABSENT_SHARE * known)


class Guards:
    """The freeze of this node, if there is one. An identity that changed stays a freeze until the agent is restarted
    against the right cluster or ledger; mass absence ends when the objects are back."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._identity: Freeze | None = None
        self._absence: Freeze | None = None

    @property
    def freeze(self) -> Freeze | None:
        return self._identity or self._absence

    async def check_installation(self, installation: InstallationId) -> None:
        """Compare with the cluster that this node has belonged to so far; the first one is remembered."""
        memory = self._journal.memory()
        if memory.installation is None:
            await self._journal.commit(memory=NodeMemory(installation, memory.ledger, memory.highest_fence))
        elif memory.installation != installation:
            self._freeze_identity(
                f"this node belongs to the cluster {memory.installation} (uid of kube-system), and the kubeconfig leads to "
                f"{installation}: nothing is stopped, removed or archived. Give the agent the right kubeconfig, or "
                "another state folder if the node is to move"
            )

    async def check_ledger(self, identity: LedgerIdentity) -> None:
        """The same for the ledger; its highest fence must never go backwards."""
        memory = self._journal.memory()
        if memory.ledger is not None and memory.ledger != identity.id:
            self._freeze_identity(
                f"the ledger is another one ({identity.id}) than before ({memory.ledger}): nothing is removed. Connect the "
                "agent to the right database"
            )
        elif identity.highest_fence < memory.highest_fence:
            self._freeze_identity(
                f"the ledger was put back to an earlier day: its highest fence is {identity.highest_fence}, this node has "
                f"seen {memory.highest_fence}. Nothing is removed"
            )
        elif (memory.ledger, memory.highest_fence) != (identity.id, identity.highest_fence):
            await self._journal.commit(memory=NodeMemory(memory.installation, identity.id, identity.highest_fence))

    def check_absence(self, absent: int, known: int) -> None:
        """After each full list: how many recorded lives have no object although nobody was seen deleting them."""
        if too_many_absent(absent, known):
            message = (
                f"{absent} of this node's {known} runtimes have no object any more although none was seen being deleted: "
                "etcd may have been restored. They keep running; nothing is removed until the objects are back or a "
                "person decides"
            )
            if self._absence is None:
                log.error("mass_absence", absent=absent, known=known)
            self._absence = Freeze(Reason.MASS_ABSENCE, message)
        elif self._absence is not None:
            log.info("mass_absence_over", absent=absent, known=known)
            self._absence = None

    def _freeze_identity(self, message: str) -> None:
        """The first cause stays: in another cluster the ledger looks wrong, too."""
        if self._identity is None:
            log.error("identity_changed", message=message)
            self._identity = Freeze(Reason.IDENTITY_CHANGED, message)
