"""When a main process that ended is started again: restart policy and back-off, as pure arithmetic on the record."""

from __future__ import annotations

from dataclasses import dataclass

from perdure.api.conditions import Reason
from perdure.api.runtime import RestartPolicy
from perdure.plan.uptime import Uptime
from perdure.plan.world import Exit, Halted, Record

HEALTHY_SECONDS = 600.0
"""A process that lived this long starts the row of failures anew."""
MAX_DELAY_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from an end; goes into the journal before the task is deleted."""

    failures_in_row: int
    next_start_at: float | None
    halted: Halted | None
    restarts: int


def delay_after(failures_in_row: int) -> float:
    """Seconds to wait before the restart that follows the given number of ends in a row: 0, 1, 2, 4, … at most 300."""
    if failures_in_row <= 1:
        return 0.0
    return float(min(MAX_DELAY_SECONDS, 2 ** min(failures_in_row - 2, 16)))


def due_at(record: Record, now: float, uptime: Uptime | None) -> float | None:
    """When the next start is due, in seconds since the epoch as the wall clock shows them `now`.

    By whichever clock says so first: one that is set back makes nobody wait longer than the delay. Where only the wall
    clock can tell (there was a reboot in between), the delay is what is left at most.
    """
    if record.next_start_at is None:
        return None
    elapsed = uptime.since(record.stopped_up) if uptime is not None else None
    return min(record.next_start_at, now + delay_after(record.failures_in_row) - (elapsed or 0.0))


def counts_anew(record: Record, now: float, uptime: Uptime | None) -> bool:
    """Whether the journal has a time that no delay explains, and no other clock can tell how much of it is over."""
    known = uptime is not None and uptime.since(record.stopped_up) is not None
    return record.next_start_at is not None and not known and due_at(record, now, uptime) != record.next_start_at


def judge(record: Record, exit_: Exit, policy: RestartPolicy, spec_hash: str) -> Verdict:
    """What the policy says about this end. An exit code that the engine lost counts as a failure, and so does an end
    for a failed probe, whatever its code."""
    clean = exit_.code == 0 and not exit_.unhealthy
    if policy is RestartPolicy.NEVER or (policy is RestartPolicy.ON_FAILURE and clean):
        reason = Reason.COMPLETED if clean else Reason.EXITED
        return Verdict(0, None, Halted(reason, spec_hash), record.restarts)
    lived = exit_.at - record.started_at if record.started_at is not None else 0.0
    row = 1 if lived >= HEALTHY_SECONDS else record.failures_in_row + 1
    return Verdict(row, exit_.at + delay_after(row), None, record.restarts + 1)
