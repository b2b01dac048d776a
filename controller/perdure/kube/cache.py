"""What this process knows of runtimes: uid → newest version seen, from watch, list and the answers to its own writes.

The intake and the status writer put objects in, the reconciler reads them. Nothing is ever removed because of an event
or an absence: `deleted` only wakes the reconciler, who asks the API server and then calls `forget`.
Not thread-safe: everything happens on the loop of the reconciler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from perdure.api.names import Kind, Uid
from perdure.api.runtime import Runtime


@dataclass(frozen=True, slots=True)
class _Entry:
    runtime: Runtime
    stamp: int
    """Counts puts: tells whether an entry is older than a list that was begun at a certain count."""


@dataclass(frozen=True, slots=True)
class ListDifference:
    """What a list showed that the cache did not know. Absence is no proof: see `perdure.plan.certainty`."""

    added: frozenset[Uid]
    changed: frozenset[Uid]
    missing: frozenset[Uid]
    known: int
    """How many the cache knew of what was listed, so that `missing` can be judged."""


class RuntimeCache:
    """`on_change` is called with the uid of each object that is new, changed, or said to be deleted."""

    def __init__(self, on_change: Callable[[Uid], None] = lambda uid: None) -> None:
        self._entries: dict[Uid, _Entry] = {}
        self._stamp = 0
        self._on_change = on_change

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, uid: Uid) -> Runtime | None:
        return self._entries[uid].runtime if uid in self._entries else None

    def uids(self) -> tuple[Uid, ...]:
        return tuple(self._entries)

    def put(self, runtime: Runtime) -> None:
        """Take a version in, unless a newer one is there."""
        known = self.get(runtime.uid)
        if known is None or _is_newer(runtime.resource_version, known.resource_version):
            self._store(runtime)

    def deleted(self, runtime: Runtime) -> None:
        """A watch says that it is gone, or that it left the selector. A hint: the object stays known."""
        self._on_change(runtime.uid)

    def forget(self, uid: Uid) -> None:
        """The reconciler is done with this life."""
        self._entries.pop(uid, None)

    def mark(self) -> int:
        """To be taken before a list is requested, for `compare`."""
        return self._stamp

    def compare(self, kind: Kind, listed: Mapping[Uid, Runtime], mark: int) -> ListDifference:
        """Take a whole list in, and say what was not known before.

        An entry that was put in after `mark` may be newer than the list and is left alone. For older ones the list is
        right even if its resourceVersion is lower: etcd may have been restored from a backup.
        """
        before = {uid: entry for uid, entry in self._entries.items() if entry.runtime.kind is kind}
        old = {uid: entry.runtime.resource_version for uid, entry in before.items() if entry.stamp <= mark}
        added = frozenset(uid for uid in listed if uid not in before)
        changed = frozenset(
            uid for uid, version in old.items() if uid in listed and listed[uid].resource_version != version
        )
        for uid in added | changed:
            self._store(listed[uid])
        return ListDifference(added, changed, frozenset(old) - listed.keys(), len(before))

    def _store(self, runtime: Runtime) -> None:
        self._stamp += 1
        self._entries[runtime.uid] = _Entry(runtime, self._stamp)
        self._on_change(runtime.uid)


def _is_newer(version: str, than: str) -> bool:
    """resourceVersions of one resource are comparable as numbers.

    Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions (since 1.35 by promise).
    """
    if version.isdigit() and than.isdigit():
        return int(version) > int(than)
    return version != than
