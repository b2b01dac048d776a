"""Ends a process and whatever came out of it, inside one cgroup: by kinship, by session, and by a mark in the environment.

For commands that run beside a container's main process. A child that was given to another parent is known by its session
(runc makes every command the leader of one, libcontainer/nsenter/nsexec.c), one that began a session of its own by the
mark that it inherited. What cleared its environment as well cannot be told from the main process's own children.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

ROUNDS = 50
"""Whoever forks while it is being killed is met again in the next round."""
PAUSE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class _Seen:
    parent: int
    session: int
    state: str


def kill_with_descendants(procs: Path, pid: int, mark: str) -> bool:
    """SIGKILL `pid` and what came out of it, among the processes that `procs` (a cgroup.procs) lists. `mark`: `NAME=value`.

    Blocking, half a second at most. Returns whether nothing of it is left but zombies. Raises `OSError` if the cgroup
    cannot be read, though it is there.
    """
    for _ in range(ROUNDS):
        victims = _victims(procs, pid, mark)
        if not victims:
            return True
        for victim in victims:
            _kill(victim)
        time.sleep(PAUSE_SECONDS)
    return False


def _victims(procs: Path, pid: int, mark: str) -> set[int]:
    try:
        members = [int(line) for line in procs.read_text().split()]
    except FileNotFoundError:
        return set()  # the container is gone, and they with it
    seen = {member: found for member in members if (found := _look(member)) is not None and found.state not in "ZX"}
    victims = {member for member, found in seen.items() if member == pid or found.session == pid}
    wanted = mark.encode()
    victims |= {member for member in seen if member not in victims and wanted in _environment(member)}
    while more := {member for member, found in seen.items() if found.parent in victims and member not in victims}:
        victims |= more
    return victims


def _look(pid: int) -> _Seen | None:
    """proc(5), stat: the name in brackets may hold anything; what follows its last bracket does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return _Seen(parent=int(fields[1]), session=int(fields[3]), state=fields[0])


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []  # it ended meanwhile, or does not let itself be looked at


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
