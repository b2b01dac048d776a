"""What the sandbox contract needs of whoever is held to it: a new process over the same node, damage, other programs.

`tests/contract/test_sandbox_contract.py` runs against each rig that its fixtures make.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from tests.fakes.sandbox import FakeSandbox, SandboxState
from tests.integration.network.own_node import OwnNode

from perdure.api.names import Uid
from perdure.cli.networks import Networks
from perdure.network.attachments import Damage
from perdure.network.none import LoopbackSandbox
from perdure.reconcile.ports.sandbox import Sandbox


class SandboxRig(Protocol):
    async def sandbox(self) -> Sandbox:
        """A new process's, over what is on the node."""

    def damage(self, uid: Uid) -> None:
        """Something is found missing of the rules around an attachment."""

    def listen(self, number: int) -> AbstractContextManager[None]:
        """Another program of the node listens on the TCP port."""

    def led_in(self, uid: Uid) -> set[int]:
        """The TCP ports of the node that really lead into it, whatever the sandbox says."""


@dataclass
class FakeRig:
    has_network: bool
    state: SandboxState = field(default_factory=SandboxState)

    async def sandbox(self) -> Sandbox:
        return FakeSandbox(self.state, has_network=self.has_network)

    def damage(self, uid: Uid) -> None:
        self.state.made[uid] = replace(self.state.made[uid], damage="rules are missing")

    @contextmanager
    def listen(self, number: int) -> Iterator[None]:
        self.state.foreign_listeners.add(number)
        yield
        self.state.foreign_listeners.discard(number)

    def led_in(self, uid: Uid) -> set[int]:
        return {port.host_port for port in self.state.made[uid].ports}


@dataclass
class LoopbackRig:
    run_dir: Path

    async def sandbox(self) -> Sandbox:
        return LoopbackSandbox(self.run_dir)

    def damage(self, uid: Uid) -> None:
        raise AssertionError(f"nothing of {uid} can be damaged: only loopback is in it")

    @contextmanager
    def listen(self, number: int) -> Iterator[None]:
        with socket.create_server(("", number)):
            yield

    def led_in(self, uid: Uid) -> set[int]:
        return set()


@dataclass
class NodeRig:
    """The real one, in a network namespace of its own."""

    node: OwnNode
    networks: Networks | None = None

    async def sandbox(self) -> Sandbox:
        self.networks = await self.node.agent()
        return self.networks.sandbox

    def damage(self, uid: Uid) -> None:
        assert self.networks is not None
        self.networks.upkeep.attachments.damages[uid] = Damage("rules are missing", interface=False)

    @contextmanager
    def listen(self, number: int) -> Iterator[None]:
        with socket.create_server(("", number)):
            yield

    def led_in(self, uid: Uid) -> set[int]:
        return self.node.led_in(uid)
