"""One agent per node: flock(2) on files, which the kernel drops when the process ends, however it ends.

Two locks: the state folder (whose journal has one writer) and the pair of engine root and engine namespace (whose
containers have one owner). The second one excludes agents with *other* state folders only where `lock_dir` is shared.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from perdure.api.conditions import Reason
from perdure.journal.durable import make_folder
from perdure.journal.errors import JournalFailed
from perdure.reconcile.ports.errors import PortError


class NodeLocked(PortError):
    """Another agent is at work here."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.IN_PROGRESS)


class NodeLock:
    """Held from `acquire` to `release`, or as a `with` block; child processes do not inherit it."""

    def __init__(self, state_dir: Path, engine_root: Path, namespace: str, *, lock_dir: Path | None = None) -> None:
        """`lock_dir`: where the lock of the engine is, by default under the state folder."""
        key = hashlib.sha256(f"{engine_root.resolve()}\0{namespace}".encode()).hexdigest()[:16]
        self._locks = (
            (state_dir / "locks" / "state.lock", f"the state folder {state_dir}"),
            (
                (lock_dir or state_dir / "locks") / f"engine-{key}.lock",
                f"the engine at {engine_root}, namespace {namespace}",
            ),
        )
        self._held = ExitStack()

    def acquire(self) -> None:
        """Take both locks now. Raises `NodeLocked` if another process has one, `JournalFailed` if none can be had."""
        with ExitStack() as held:
            for path, what in self._locks:
                held.callback(os.close, _lock(path, what))
            self._held = held.pop_all()

    def release(self) -> None:
        self._held.close()

    def __enter__(self) -> NodeLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _lock(path: Path, what: str) -> int:
    try:
        make_folder(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JournalFailed(f"locking {what}: the lock file {path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        if error.errno == errno.EWOULDBLOCK:
            raise NodeLocked(
                f"locking {what}: another agent holds {path} (process {holder}); only one may run here: stop that "
                "one, or give this one another --state-dir and engine namespace"
            ) from error
        raise JournalFailed(f"locking {what}: {path}: {error.strerror}") from error
    return descriptor
