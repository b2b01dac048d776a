"""A moment by a clock that nobody sets: what the planner compares where a wall clock must not be believed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Uptime:
    """A moment by a clock that nobody sets: seconds since the machine's boot, and which boot that was."""

    boot: str
    seconds: float

    def since(self, earlier: Uptime | None) -> float | None:
        """Seconds between the two; None if they are not of one boot."""
        return self.seconds - earlier.seconds if earlier is not None and earlier.boot == self.boot else None
