"""Where a new workspace's data comes from: an archive, nothing, or no decision while something is not certain.

Asked once per life, before the first snapshot is made. "Nothing" is the only dangerous answer, so it needs proof that
there never was anything: no status, no ledger row, no archive, no unarchived predecessor.
"""

from __future__ import annotations

from dataclasses import dataclass

from perdure.api.conditions import Reason
from perdure.api.names import ANNOTATION_FORCE_RELEASE
from perdure.api.phases import Phase
from perdure.api.runtime import RestorePolicy, Runtime
from perdure.plan.certainty import Certain, Present
from perdure.plan.view import archive_name
from perdure.plan.world import ArchiveFacts, LedgerFacts

LIFE_IS_OVER = (
    "this object was deleted before and its data was dealt with then; the cluster seems to have been restored to an "
    "earlier state. Delete it; an object created anew under this name gets the preserved data back"
)


@dataclass(frozen=True, slots=True)
class Fresh:
    """Proven: there is nothing to bring back, or a person asked for nothing."""


@dataclass(frozen=True, slots=True)
class FromArchive:
    archive: ArchiveFacts


@dataclass(frozen=True, slots=True)
class Undecided:
    reason: Reason
    message: str
    phase: Phase


Choice = Fresh | FromArchive | Undecided


def choose(runtime: Runtime, ledger: Certain[LedgerFacts]) -> Choice:
    """The source for the first workspace of this life."""
    if isinstance(ledger, Present) and ledger.it.released:
        return Undecided(Reason.IDENTITY_CHANGED, LIFE_IS_OVER, Phase.BLOCKED)
    if runtime.status.snapshot_key is not None:
        return _missing(runtime, runtime.status.snapshot_key, "its status")
    match ledger:
        case Present(it=facts):
            return _choose_knowing(runtime, facts)
        case _:
            if runtime.spec.restore.policy is RestorePolicy.NONE:
                return Fresh()
            return Undecided(
                Reason.LEDGER_UNAVAILABLE,
                "the ledger cannot be asked whether there is data to bring back, so nothing is started yet",
                Phase.PENDING,
            )


def _choose_knowing(runtime: Runtime, facts: LedgerFacts) -> Choice:
    if facts.data_seen is not None:
        return _missing(runtime, facts.data_seen, "the ledger")
    restore = runtime.spec.restore
    match restore.policy:
        case RestorePolicy.NONE:
            return Fresh()
        case RestorePolicy.ARCHIVE:
            if facts.named is None:
                return Undecided(
                    Reason.ARCHIVE_NOT_FOUND,
                    f"no verified RuntimeArchive {restore.archive!r} in namespace {runtime.namespace}; "
                    f"{archives_to_choose_from(runtime)}",
                    Phase.FAILED,
                )
            return _if_here(runtime, facts.named)
        case RestorePolicy.LATEST:
            if facts.unarchived:
                return Undecided(Reason.ORPHAN_PENDING, _unarchived(runtime, facts), Phase.PENDING)
            if facts.quarantined is not None and (facts.latest is None or facts.quarantined > facts.latest.sequence):
                return _only_older(runtime, facts.quarantined, facts.latest)
            return _if_here(runtime, facts.latest) if facts.latest is not None else Fresh()


def _unarchived(runtime: Runtime, facts: LedgerFacts) -> str:
    """What is waited for, which may be for ever, and how to go on without it."""
    given_up = [uid for uid in facts.unarchived if uid in facts.given_up]
    uid = given_up[0] if given_up else facts.unarchived[0]
    earlier = f"data of an earlier {runtime.kind} {runtime.name} (uid {uid})"
    ways = "restore.policy: None to start on fresh data"
    if facts.latest is not None:
        last = archive_name(facts.latest)
        ways = f"restore.policy: Archive with restore.archive: {last} to go on from the last archive, or {ways}"
    if given_up:
        return f"{earlier} was released by force before it was archived, and nothing will archive it. Set {ways}"
    return f"{earlier} is not archived yet; it is waited for. Not to wait, set {ways}"


def _only_older(runtime: Runtime, bad: int, latest: ArchiveFacts | None) -> Undecided:
    """Falling back to an older generation loses what was written since: that is a person's decision."""
    older = (
        f"restore.policy: Archive with restore.archive: {archive_name(latest)}, the next older one; or "
        if latest
        else ""
    )
    return Undecided(
        Reason.ARCHIVE_CORRUPT,
        f"archive {bad}, the newest of {runtime.kind} {runtime.name}, is corrupt and was put aside. To go on set {older}"
        "restore.policy: None to start on fresh data",
        Phase.BLOCKED,
    )


def _if_here(runtime: Runtime, archive: ArchiveFacts) -> Choice:
    if archive.node_id is None or archive.node_id == runtime.node_id:
        return FromArchive(archive)
    return Undecided(
        Reason.ARCHIVE_NOT_REACHABLE,
        f"archive {archive.sequence} is in the local store of another node ({archive.node_id})",
        Phase.PENDING,
    )


def archives_to_choose_from(runtime: Runtime) -> str:
    """Where a person finds what can be restored. The objects would not do: they do not show what was found bad since."""
    kind, name = runtime.kind.short, runtime.name
    return (
        f"`perdure archive ls {kind}/{name} -n {runtime.namespace}` shows which there are; only those in STATE verified can "
        f"be restored, as {kind}-{name}-SEQUENCE"
    )


def way_on(runtime: Runtime) -> str:
    """What a person does, in this order, to go on without data that is lost, and without losing an archive by it.

    A deletion alone would wait for the data; one that was released by force waits for nothing and leaves a life behind
    that is never archived, which `restore.policy: Latest` would wait for.
    """
    it = f"{runtime.kind.short} {runtime.name} -n {runtime.namespace}"
    return (
        f"To go on from an archive: 1. {archives_to_choose_from(runtime)}. "
        f"2. `kubectl annotate {it} {ANNOTATION_FORCE_RELEASE}=data-is-missing` and then `kubectl delete {it}` let this "
        "object go, and keep every archive. 3. Create it again with restore.policy: Archive and restore.archive: NAME "
        "(or with restore.policy: None, to start on fresh data). deletionPolicy: Purge would remove the archives, too"
    )


def _missing(runtime: Runtime, key: str, witness: str) -> Undecided:
    return Undecided(
        Reason.DATA_MISSING,
        f"{witness} shows that this runtime had data (snapshot {key}), and it is not on this node. Nothing is started "
        f"on fresh data. {way_on(runtime)}",
        Phase.BLOCKED,
    )
