"""Phases of a runtime and the table of edges between them; the documentation's diagram is generated from this table."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """What a person sees in the PHASE column."""

    PENDING = "Pending"
    """Not bound to a node yet, or bound and waiting for something that is named in a condition."""
    CREATING = "Creating"
    RESTORING = "Restoring"
    RUNNING = "Running"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    REMOVED = "Removed"
    PRESERVING = "Preserving"
    PURGING = "Purging"
    FAILED = "Failed"
    """The user's spec is wrong: an edit resumes it."""
    BLOCKED = "Blocked"
    """Data is at stake: only a person's decision resumes it; the condition says which."""


_ANY_LIVE = frozenset(
    {
        Phase.PENDING,
        Phase.CREATING,
        Phase.RESTORING,
        Phase.RUNNING,
        Phase.STOPPING,
        Phase.STOPPED,
        Phase.REMOVED,
        Phase.FAILED,
        Phase.BLOCKED,
    }
)

EDGES: dict[Phase, frozenset[Phase]] = {
    Phase.PENDING: frozenset(
        {
            Phase.CREATING,
            Phase.RESTORING,
            Phase.RUNNING,
            Phase.STOPPING,
            Phase.STOPPED,
            Phase.REMOVED,
            Phase.FAILED,
            Phase.BLOCKED,
        }
    ),
    Phase.CREATING: _ANY_LIVE - {Phase.CREATING},
    Phase.RESTORING: _ANY_LIVE - {Phase.RESTORING},
    Phase.RUNNING: frozenset(
        {Phase.CREATING, Phase.STOPPING, Phase.STOPPED, Phase.REMOVED, Phase.FAILED, Phase.BLOCKED}
    ),
    # Where the journal was lost during a clean-up, what it put away is restored without having been seen as removed.
    Phase.STOPPING: frozenset(
        {
            Phase.PENDING,
            Phase.CREATING,
            Phase.RESTORING,
            Phase.RUNNING,
            Phase.STOPPED,
            Phase.REMOVED,
            Phase.FAILED,
            Phase.BLOCKED,
        }
    ),
    Phase.STOPPED: frozenset(
        {
            Phase.PENDING,
            Phase.CREATING,
            Phase.RESTORING,
            Phase.RUNNING,
            Phase.STOPPING,
            Phase.REMOVED,
            Phase.FAILED,
            Phase.BLOCKED,
        }
    ),
    Phase.REMOVED: frozenset(
        {
            Phase.PENDING,
            Phase.CREATING,
            Phase.RESTORING,
            Phase.RUNNING,
            Phase.STOPPING,
            Phase.STOPPED,
            Phase.FAILED,
            Phase.BLOCKED,
        }
    ),
    Phase.FAILED: _ANY_LIVE - {Phase.FAILED},
    Phase.BLOCKED: _ANY_LIVE - {Phase.BLOCKED},
    # A deletion can begin anywhere and never turns back; Preserve may become Purge. It may find that data is missing,
    # and a person may give it up by force: then only the container goes.
    Phase.PRESERVING: frozenset({Phase.PURGING, Phase.BLOCKED, Phase.STOPPING, Phase.REMOVED}),
    Phase.PURGING: frozenset({Phase.PRESERVING, Phase.BLOCKED, Phase.STOPPING, Phase.REMOVED}),
}

for _phase in _ANY_LIVE:
    EDGES[_phase] |= {Phase.PRESERVING, Phase.PURGING}


def may_follow(before: Phase | None, after: Phase) -> bool:
    """Whether `after` may be published when `before` was; anything may be first, and a phase may be repeated."""
    return before is None or before == after or after in EDGES[before]
