"""Network namespaces in memory, for the crash matrix. What was made is in `SandboxState`, which outlives the agent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.fakes.journal import Hook

from perdure.api.names import RuntimeRef, Uid
from perdure.api.runtime import RuntimeSpec
from perdure.plan.certainty import Absent, Certain, Present
from perdure.plan.world import SandboxFacts


@dataclass(slots=True)
class SandboxState:
    """What survives the process."""

    made: dict[Uid, SandboxFacts] = field(default_factory=dict)


class FakeSandbox:
    def __init__(self, state: SandboxState, on_call: Hook | None = None) -> None:
        self._state = state
        self._on_call = on_call

    async def observe(self, ref: RuntimeRef) -> Certain[SandboxFacts]:
        found = self._state.made.get(ref.uid)
        return Present(found) if found is not None else Absent()

    async def create(self, ref: RuntimeRef, spec: RuntimeSpec) -> SandboxFacts:
        if self._on_call is not None:
            self._on_call("sandbox.create", "before")
        facts = self._state.made.setdefault(ref.uid, SandboxFacts(f"/run/netns/{ref.uid}"))
        if self._on_call is not None:
            self._on_call("sandbox.create", "after")
        return facts

    async def remove(self, ref: RuntimeRef) -> None:
        if self._on_call is not None:
            self._on_call("sandbox.remove", "before")
        self._state.made.pop(ref.uid, None)
        if self._on_call is not None:
            self._on_call("sandbox.remove", "after")

    async def inventory(self) -> Sequence[Uid]:
        return tuple(self._state.made)
