"""What this node has attached, by runtime: asked-for ports and policy, addresses, and the links that the firewall knows it by.

Kept in memory and in one small file each below the run folder, which like the network namespaces ends with a reboot.
Written by `cni_sandbox` after an ADD; read at the agent's start. Blocking: called in threads.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from perdure.api.names import RuntimeRef, Uid
from perdure.api.network import NetworkPolicy
from perdure.plan.world import OWN_NAMESPACE, HostPort

log = structlog.get_logger(__name__)


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """One runtime's attachment."""

    ref: RuntimeRef
    network: str
    addresses: tuple[str, ...]
    """Of the container's interface, IPv4 first."""
    port: str = ""
    """The link on the node's side; empty where the plugin makes none."""
    bridge: str = ""
    """Of the node, that the link is a port of, and `subnets` the network's on it, as they were configured for its ADD; empty
    where the network is no bridge of this node's."""
    subnets: tuple[str, ...] = ()
    mac: str = ""
    """Of the container's interface, in lower case."""
    ports: tuple[HostPort, ...] = ()
    policy: NetworkPolicy = OWN_NAMESPACE
    ways_out: tuple[int, ...] = ()
    """Versions of IP in which the network gave a default route."""
    unsettled: bool = False
    """Its ports and rules were being changed: until that ends, which of them are there is not known."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What is missing of an attachment. `interface`: so much that it is attached anew; else the rules around it."""

    text: str
    interface: bool


class Attachments:
    """The folder of them. A file is whole or not there: it is written beside and renamed; no fsync, for it need not
    outlive the machine's next boot."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Uid, Attached] = {}
        self.damages: dict[Uid, Damage] = {}
        """What was found and not mended yet. In memory: whoever starts looks again."""

    def load(self) -> None:
        """Read what an earlier agent left. A file that cannot be read is as good as none: the runtime is attached anew.
        Raises `OSError`."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in self._folder.iterdir():
            if file.name.startswith("."):
                continue
            try:
                self._known[Uid(file.name)] = msgspec.json.decode(file.read_bytes(), type=Attached)
            except (msgspec.DecodeError, UnicodeError) as error:
                log.warning("attachment_unreadable", file=str(file), error=str(error))

    def get(self, uid: Uid) -> Attached | None:
        return self._known.get(uid)

    def all(self) -> tuple[Attached, ...]:
        return tuple(self._known.values())

    def uids(self) -> frozenset[Uid]:
        return frozenset(self._known)

    def put(self, attached: Attached) -> None:
        """Raises `OSError`; then nothing has changed."""
        file = self._folder / attached.ref.uid
        beside = self._folder / f".{attached.ref.uid}"
        beside.write_bytes(msgspec.json.encode(attached))
        os.rename(beside, file)
        self._known[attached.ref.uid] = attached
        self.damages.pop(attached.ref.uid, None)

    def remove(self, uid: Uid) -> None:
        """Nothing there: nothing. Raises `OSError`."""
        (self._folder / uid).unlink(missing_ok=True)
        self._known.pop(uid, None)
        self.damages.pop(uid, None)
