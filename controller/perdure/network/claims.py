"""Which ports of the node may lead into which runtime, as far as plugins were ever asked: a number is led into one alone.

The ledger frees a number when nobody asks for it any more, or by force; the kernel's rules may be there for longer. Kept in
memory by `cni_sandbox`, from before an ADD until a DEL has succeeded; at the agent's start read from the client's records,
which are written before the first plugin runs.
"""

from __future__ import annotations

from collections.abc import Iterable

from perdure.api.names import Uid
from perdure.network.attachments import Attached
from perdure.network.cni.attachment import port_mappings
from perdure.network.cni.cache import Damaged, Record
from perdure.network.container_ids import ContainerIds
from perdure.plan.world import HostPort

_Slot = tuple[str, int]
"""Protocol in capitals, and number."""


class Claims:
    """One per agent. Nothing here waits: what is asked and then claimed without an await between is nobody else's."""

    def __init__(self, ids: ContainerIds) -> None:
        self._ids = ids
        self._slots: dict[Uid, frozenset[_Slot]] = {}
        self._recalled: set[Uid] = set()

    def recall(self, records: Iterable[Record | Damaged], attached: Iterable[Attached]) -> None:
        """What an earlier agent left."""
        for record in records:
            if isinstance(record, Record):
                mappings = port_mappings(record.capabilities)
                slots = frozenset((mapping.protocol.upper(), mapping.host_port) for mapping in mappings)
                uid = self._ids.uid(record.container_id)
                self._put(uid, self._of(uid) | slots)
        for one in attached:
            self.add(one.ref.uid, one.ports)
        self._recalled = set(self._slots)

    def holder(self, uid: Uid, port: HostPort) -> Uid | None:
        """Another than `uid` that the port may lead into."""
        slot = (port.protocol, port.host_port)
        return next((other for other, slots in self._slots.items() if slot in slots and other != uid), None)

    def is_recalled(self, uid: Uid) -> bool:
        """Whether all that is known of it is what an earlier agent left: who removes that may not have told us."""
        return uid in self._recalled

    def add(self, uid: Uid, ports: Iterable[HostPort]) -> None:
        """Before a plugin is asked for them, beside what it has."""
        self._put(uid, self._of(uid) | _slots(ports))

    def settle(self, uid: Uid, ports: Iterable[HostPort]) -> None:
        """Exactly these lead into it now."""
        self._put(uid, _slots(ports))

    def drop(self, uid: Uid) -> None:
        """Nothing of it is left."""
        self._put(uid, frozenset())

    def _of(self, uid: Uid) -> frozenset[_Slot]:
        return self._slots.get(uid, frozenset())

    def _put(self, uid: Uid, slots: frozenset[_Slot]) -> None:
        self._recalled.discard(uid)
        if slots:
            self._slots[uid] = slots
        else:
            self._slots.pop(uid, None)


def _slots(ports: Iterable[HostPort]) -> frozenset[_Slot]:
    return frozenset((port.protocol, port.host_port) for port in ports)
