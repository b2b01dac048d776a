"""What the loop tells of itself, for whoever counts it: `perdure.telemetry.metrics` in a process, nobody in most tests."""

from __future__ import annotations

from typing import Protocol


class Probe(Protocol):
    """Called on the event loop; must not block or raise. Seconds are wall time."""

    def reconciled(self, outcome: str, seconds: float) -> None: ...

    def stepped(self, step: str, outcome: str, seconds: float) -> None: ...

    def finished(self, op: str, outcome: str, code: str) -> None: ...

    def happened(self, event: str) -> None: ...

    def probed(self, probe: str, result: str) -> None: ...

    def archived(self, direction: str, size: int, seconds: float) -> None: ...
