"""Free TCP ports on loopback, chosen once per environment and remembered, so that several live side by side.

Called by ``rig.environment``.
"""

import fcntl
import json
import random
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from rig.paths import RUN_ROOT, cache_home

FIRST, LAST = 20000, 31999
"""Below the range that Linux hands to outgoing connections (ip_local_port_range, 32768 upwards)."""

FILE = "ports.json"


def remembered(directory: Path, names: Iterable[str], running: frozenset[str]) -> dict[str, int]:
    """Ports for ``names``, kept in ``directory``/ports.json.

    A remembered port stays unless somebody else took it; those in ``running`` are in use by our own daemons.
    """
    directory.mkdir(parents=True, exist_ok=True)
    cache_home().mkdir(parents=True, exist_ok=True)
    with (cache_home() / "ports.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = read(directory)
        taken = {port for other in RUN_ROOT.glob("*") for port in read(other).values()}
        ports: dict[str, int] = {}
        for name in names:
            known = before.get(name)
            if known is not None and (name in running or is_free(known)):
                ports[name] = known
            else:
                ports[name] = _choose(taken | set(ports.values()) | set(before.values()))
        (directory / FILE).write_text(json.dumps(ports))
    return ports


def read(directory: Path) -> Mapping[str, int]:
    """The ports that ``directory`` remembers; none where it has no such file."""
    try:
        content = json.loads((directory / FILE).read_text())
    except FileNotFoundError:
        return {}
    return {str(name): int(port) for name, port in content.items()}


def is_free(port: int) -> bool:
    """True if a server could listen on ``port`` of the loopback address now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _choose(taken: set[int]) -> int:
    for port in random.sample(range(FIRST, LAST + 1), 1000):
        if port not in taken and is_free(port):
            return port
    raise RuntimeError(f"no free TCP port between {FIRST} and {LAST} on 127.0.0.1")
