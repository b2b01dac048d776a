"""The ids under which plugins know this agent's attachments: nobody else's is ever taken for one of ours.

Networks may be shared: with a kubelet, whose ids are 64 hex digits, with another tool, or with another installation of Perdure.
host-local's files and the rules of plugins name the container alone, so the id itself has to say whose it is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from perdure.api.names import InstallationId, Uid


@dataclass(frozen=True, slots=True)
class ContainerIds:
    """`prefix` is of one installation on one node; what follows it is the runtime's uid."""

    prefix: str

    @classmethod
    def of(cls, owner: InstallationId) -> ContainerIds:
        """`owner`: see `rules.owner_of`."""
        return cls(f"perdure-{hashlib.sha256(owner.encode()).hexdigest()[:8]}-")

    def id(self, uid: Uid) -> str:
        return f"{self.prefix}{uid}"

    def uid(self, container_id: str) -> Uid:
        """Whose id of ours it is."""
        return Uid(container_id.removeprefix(self.prefix))

    def is_ours(self, container_id: str) -> bool:
        return container_id.startswith(self.prefix)
