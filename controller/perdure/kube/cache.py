"""What this process knows of runtimes: uid → newest version seen, from watch, list and the answers to its own writes.

The intake, the resync and the status writer put objects in, the reconciler reads them. An object that is not here is
not proven to be gone: whoever needs to know asks the API server. Not thread-safe: everything happens on one loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from perdure.api.names import Kind, Uid
from perdure.api.runtime import Runtime


@dataclass(frozen=True, slots=True)
class _Entry:
    """`stamp` counts changes of the cache: it tells what is older than a list that was begun at a certain count."""

    runtime: Runtime
    stamp: int
    gone: bool
    """A watch or a list said so; kept for a while so that an older version does not bring it back."""


@dataclass(frozen=True, slots=True)
class ListDifference:
    """What a list showed that the cache did not know."""

    added: frozenset[Uid]
    changed: frozenset[Uid]
    missing: frozenset[Uid]
    known: int
    """How many of what was listed the cache knew before, so that `missing` can be judged."""


class RuntimeCache:
    """`on_change` is called with the uid of each object that is new, changed, or said to be gone."""

    def __init__(self, on_change: Callable[[Uid], None] = lambda uid: None) -> None:
        self._entries: dict[Uid, _Entry] = {}
        self._stamp = 0
        self._on_change = on_change

    def __len__(self) -> int:
        return len(self.uids())

    def get(self, uid: Uid) -> Runtime | None:
        """None also for one that a watch or a list said is gone."""
        entry = self._entries.get(uid)
        return None if entry is None or entry.gone else entry.runtime

    def uids(self) -> tuple[Uid, ...]:
        return tuple(uid for uid, entry in self._entries.items() if not entry.gone)

    def put(self, runtime: Runtime) -> None:
        """Take a version in, unless a newer one is there."""
        known = self._entries.get(runtime.uid)
        if known is None or _is_newer(runtime.resource_version, known.runtime.resource_version):
            self._store(runtime)

    def learn(self, runtime: Runtime) -> None:
        """Take in the answer to a write of our own to /status. Whoever wrote knows what it wrote; but the answer also has
        what others changed meanwhile, whose own event will find this version here and count as old."""
        known = self.get(runtime.uid)
        if known is None:
            self.put(runtime)
            return
        as_known = replace(runtime, status=known.status, resource_version=known.resource_version)
        if as_known != known:
            self.put(runtime)
        elif _is_newer(runtime.resource_version, known.resource_version):
            self._stamp += 1
            self._entries[runtime.uid] = _Entry(runtime, self._stamp, gone=False)

    def deleted(self, runtime: Runtime) -> None:
        """A watch says that it is deleted, or that it left the selector, at this version."""
        known = self._entries.get(runtime.uid)
        if known is None or not _is_newer(known.runtime.resource_version, runtime.resource_version):
            self._store(runtime, gone=True)

    def mark(self) -> int:
        """To be taken before a list is requested, for `compare`."""
        return self._stamp

    def compare(self, kind: Kind, listed: Mapping[Uid, Runtime], mark: int) -> ListDifference:
        """Take a whole list in, and say what was not known before.

        What came in after `mark` may be newer than the list and is left alone. For what is older the list is right,
        even if its resourceVersions are lower: etcd may have been restored from a backup.
        """
        entries = {uid: entry for uid, entry in self._entries.items() if entry.runtime.kind is kind}
        old = {uid: entry for uid, entry in entries.items() if entry.stamp <= mark}
        known = {uid for uid, entry in entries.items() if not entry.gone}
        added = {uid for uid in listed if uid not in entries or (uid in old and old[uid].gone)}
        changed = {
            uid
            for uid in listed
            if uid in old and not old[uid].gone and old[uid].runtime.resource_version != listed[uid].resource_version
        }
        missing = {uid for uid in old if uid in known and uid not in listed}
        for uid in added | changed:
            self._store(listed[uid])
        for uid in missing:
            self._store(old[uid].runtime, gone=True)
        for uid, entry in old.items():
            if entry.gone and uid not in listed:
                del self._entries[uid]  # a list and a watch agree: nothing older than both will come
        return ListDifference(frozenset(added), frozenset(changed), frozenset(missing), len(known))

    def _store(self, runtime: Runtime, *, gone: bool = False) -> None:
        self._stamp += 1
        self._entries[runtime.uid] = _Entry(runtime, self._stamp, gone)
        self._on_change(runtime.uid)


def _is_newer(version: str, than: str) -> bool:
    """resourceVersions of one resource are comparable as numbers.

    Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions (since 1.35 by promise).
    """
    if version.isdigit() and than.isdigit():
        return int(version) > int(than)
    return version != than
