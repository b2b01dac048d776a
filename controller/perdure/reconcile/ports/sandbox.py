"""Who gives a runtime its network namespace and address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from perdure.api.names import (
    RuntimeRef,
    Uid,
)
from perdure.api.runtime import RuntimeSpec
from perdure.plan.certainty import Certain
from perdure.plan.world import (
    SandboxFacts,
)


class Sandbox(Protocol):
    """Who gives a runtime its network namespace and address, and says when they go. Raises `SandboxFailed`."""

    async def observe(self, ref: RuntimeRef) -> Certain[SandboxFacts]: ...

    async def create(self, ref: RuntimeRef, spec: RuntimeSpec) -> SandboxFacts: ...

    async def remove(self, ref: RuntimeRef) -> None: ...

    async def inventory(self) -> Sequence[Uid]: ...
