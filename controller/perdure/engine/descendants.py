"""Ends a process and whatever came out of it, inside one cgroup: by kinship, by session, and by a mark in the environment.

For commands that run beside a container's main process. A child that was given to another parent is known by its session
(runc makes every command the leader of one, libcontainer/nsenter/nsexec.c), one that began a session of its own by the
mark that it inherited. What cleared or hid its environment as well cannot be told from the main process's own children,
and ends with them: the kernel ends all of a pid namespace with its first process.

All of them may be hostile. What they show of themselves costs little memory and a bounded time, however much it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from perdure.reconcile.ports.exec_limits import TOTAL_BYTES

ROUNDS = 50
"""Whoever forks while it is being killed is met again in the next round."""
PAUSE_SECONDS = 0.01
DEADLINE_SECONDS = 2.0
ENVIRONMENT_BYTES = TOTAL_BYTES
"""No program is started with more. A process can name any part of its memory its environment (prctl(2), PR_SET_MM_MAP): GiBs
are offered to whoever reads it whole."""
PIECE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Seen:
    parent: int
    session: int
    state: str
    started: int
    """Clock ticks after the boot."""


def kill_with_descendants(procs: Path, pid: int, mark: str) -> bool:
    """SIGKILL `pid` and what came out of it, among the processes that `procs` (a cgroup.procs) lists. `mark`: `NAME=value`.

    Blocking, `DEADLINE_SECONDS` at most. Returns whether nothing of it is left but zombies; whatever was not looked at in
    time counts as left. Raises `OSError` if the cgroup cannot be read, though it is there.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    for _ in range(ROUNDS):
        seen = _members(procs)
        # Kin first: that takes no look into anybody's memory.
        victims = _with_kin({member for member, found in seen.items() if pid in (member, found.session)}, seen)
        _kill(victims, seen)
        try:
            for member in _marked(seen.keys() - victims, mark, deadline):
                kin = _with_kin({member}, seen)
                _kill(kin - victims, seen)
                victims |= kin
        except TimeoutError:
            return False
        if not victims:
            return True
        time.sleep(PAUSE_SECONDS)
    return False


def _members(procs: Path) -> dict[int, _Seen]:
    """Who is alive in the cgroup."""
    try:
        members = [int(line) for line in procs.read_text().split()]
    except FileNotFoundError:
        return {}  # the container is gone, and they with it
    return {member: found for member in members if (found := _look(member)) is not None and found.state not in "ZX"}


def _with_kin(some: Set[int], seen: Mapping[int, _Seen]) -> set[int]:
    kin = set(some)
    while more := {member for member, found in seen.items() if found.parent in kin and member not in kin}:
        kin |= more
    return kin


def _look(pid: int) -> _Seen | None:
    """proc(5), stat: the name in brackets may hold anything; what follows its last bracket does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return _Seen(parent=int(fields[1]), session=int(fields[3]), state=fields[0], started=int(fields[19]))


def _marked(members: Set[int], mark: str, deadline: float) -> Iterator[int]:
    """Which of them have the variable. A first look at each comes before a long one at any: one that is slow to read hides
    nobody behind it. Raises `TimeoutError`."""
    unmarked = set(members)
    for most in (PIECE_BYTES, ENVIRONMENT_BYTES):
        for member in tuple(unmarked):
            if _is_marked(member, b"\0" + mark.encode() + b"\0", most, deadline):
                unmarked.remove(member)
                yield member


def _is_marked(pid: int, needle: bytes, most: int, deadline: float) -> bool:
    held, left = b"\0", most
    try:
        environ = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # it ended meanwhile, or does not let itself be looked at
    try:
        while left > 0 and (piece := os.read(environ, min(left, PIECE_BYTES))):
            held += piece
            if needle in held:
                return True
            held, left = held[-len(needle) :], left - len(piece)
            if time.monotonic() > deadline:
                raise TimeoutError(f"looking for a mark in the environment of process {pid} took too long")
    except (ProcessLookupError, PermissionError):
        return False  # as above
    finally:
        os.close(environ)
    return False


def _kill(victims: Set[int], seen: Mapping[int, _Seen]) -> None:
    for victim in victims:
        now = _look(victim)
        # Its number may be another process's by now, of the node even.
        if now is not None and now.started == seen[victim].started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
