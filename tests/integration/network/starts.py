"""Many runtimes come and go on one node while its plugins fail, and two neighbours talk to each other all the while.

What is asked of a sandbox, and how often it is asked again, is what the loop does; only its delays are shorter here.
Called by `test_starts` and by `hack/chaos network`.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.integration.network.faulty_plugins import FaultyPlugins
from tests.integration.network.own_node import GATEWAY4, PLUGINS, OwnNode, socket_in, tcp

from perdure.api.names import RuntimeRef, Uid
from perdure.cli.networks import Networks, Patience
from perdure.plan.world import HostPort
from perdure.reconcile.ports.errors import SandboxFailed
from perdure.reconcile.ports.sandbox import SandboxPlan
from perdure.reconcile.retries import Retries

AT_ONCE = 8
PERCENT = 20
MOST_ATTEMPTS = 100
"""Of one step; a fifth of all executions failing, a hundred attempts in a row mean that none would have helped."""
SHORTENED = 1 / 200
"""Of the loop's delays, which are there to spare a node that others share."""
TURN_SECONDS = 0.5
"""Between two words of the neighbours."""
LOOK_SECONDS = 3.0
ANSWER_SECONDS = 20.0
SWEEP_SECONDS = 60.0
NEIGHBOUR_PORT = 6999
PATIENCE = Patience(plugin_seconds=2.0, leftover_seconds=2.0)


@dataclass(slots=True)
class Outcome:
    """`told`: how often each fault happened; `failures`: of steps, by reason."""

    attached: int = 0
    lost: list[str] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    leaking: int = 0
    """Runtimes whose address was still reserved when their removal had succeeded: what sweeps are for."""
    words: int = 0
    """That the neighbours exchanged."""
    left: list[str] = field(default_factory=list)
    """Of runtimes that are gone, after the sweeps."""


class Conversation:
    """An echo server in a neighbour's namespace, and connections to it that are open from the beginning to the end."""

    def __init__(self, server: Path, client: Path, address: str) -> None:
        self._server = socket_in(server)
        self._server.settimeout(ANSWER_SECONDS)
        self._server.bind((address, 80))
        self._server.listen(4)
        threading.Thread(target=self._serve, daemon=True).start()
        self._clients = [socket_in(client), socket.socket()]
        for connection, target in zip(self._clients, ((address, 80), (GATEWAY4, NEIGHBOUR_PORT)), strict=True):
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(target)

    def _serve(self) -> None:
        for _ in range(2):
            connection, _ = self._server.accept()
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()

    def exchange(self, word: bytes) -> None:
        """Raises `OSError` or `AssertionError` for a connection that did not live."""
        for connection in self._clients:
            connection.sendall(word)
            assert connection.recv(64) == word

    def close(self) -> None:
        for one in (*self._clients, self._server):
            one.close()


def _echo(connection: socket.socket) -> None:
    with connection:
        while said := connection.recv(64):
            connection.sendall(said)


@dataclass(slots=True)
class Starts:
    """`node` is configured, and the caller in its namespace."""

    node: OwnNode
    plugins: FaultyPlugins
    networks: Networks
    random: Random
    outcome: Outcome = field(default_factory=Outcome)
    _retries: Retries = field(default_factory=lambda: Retries(now=lambda: 0.0))
    _alive: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(3 * AT_ONCE))
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    _coming: asyncio.Condition = field(default_factory=asyncio.Condition)
    _come: int = 0

    async def life(self, number: int, total: int) -> None:
        """One runtime: it gets its network, is seen to have it, stays while others come or does not, and goes."""
        async with self._alive:
            await self._live(number, total)

    async def _live(self, number: int, total: int) -> None:
        ports = tuple(tcp(7000 + 2 * number + n, f"p{n}") for n in range(self.random.choice((0, 0, 1, 2))))
        plan = self.node.plan(*ports)
        stays = self.random.randrange(2) * AT_ONCE
        async with self._places:
            if await self._until("attach", plan.ref, lambda: self._attach(plan, ports)):
                self.outcome.attached += 1
        async with self._coming:
            self._come += 1
            self._coming.notify_all()
            until = min(self._come + stays, total)
            await self._coming.wait_for(lambda: self._come >= until)
        async with self._places:
            await self._until("remove", plan.ref, lambda: self.networks.sandbox.remove(plan.ref))
        self.node.known.discard(plan.ref.uid)
        self.outcome.leaking += self.node.container(plan.ref.uid) in await asyncio.to_thread(self.node.lessees)

    async def _attach(self, plan: SandboxPlan, ports: tuple[HostPort, ...]) -> None:
        sandbox = self.networks.sandbox
        await sandbox.create(plan)
        facts = await sandbox.attach(plan)
        assert facts.ports == ports
        has = await asyncio.to_thread(self.node.addresses, plan.ref.uid)
        assert tuple(has) == facts.addresses, f"{plan.ref.uid} has {has}, and {facts.addresses} is told"

    async def _until(self, step: str, ref: RuntimeRef, attempt: Callable[[], Awaitable[None]]) -> bool:
        """Tried as the loop tries, until it holds."""
        for _ in range(MOST_ATTEMPTS):
            try:
                await attempt()
            except SandboxFailed as error:
                failure = self._retries.failed(ref.uid, 1, step, error)
                self.outcome.failures[f"{step}: {error.reason}"] += 1
                await asyncio.sleep((failure.retry_at or 0.0) * SHORTENED)
            else:
                self._retries.succeeded(ref.uid)
                return True
        self.outcome.lost.append(f"{step} of {ref.uid}: {failure.message}")
        return False

    async def look_after(self) -> None:
        """Until cancelled: what an agent does beside."""
        network = self.node.network()
        while True:
            failures = [*await self.networks.upkeep.look(), *await self.networks.upkeep.sweep(network)]
            self.outcome.lost += [f"looking after: {failure}" for failure in failures]
            await asyncio.sleep(LOOK_SECONDS)

    async def talk(self, conversation: Conversation) -> None:
        """Until cancelled."""
        while True:
            self.outcome.words += 1
            await asyncio.to_thread(conversation.exchange, str(self.outcome.words).encode())
            await asyncio.sleep(TURN_SECONDS)

    async def neighbour(self, *ports: HostPort, of: RuntimeRef | None = None) -> tuple[RuntimeRef, str]:
        """Attached while nothing fails, in the same namespace as `of`."""
        plan = self.node.plan(*ports, of=of)
        await self.networks.sandbox.create(plan)
        facts = await self.networks.sandbox.attach(plan)
        return plan.ref, facts.addresses[0]

    async def sweep(self, before: list[str]) -> None:
        """With plugins that work again, until nothing more is there than before, or for a minute."""
        network = self.node.network()
        try:
            async with asyncio.timeout(SWEEP_SECONDS):
                while self._new_traces(before):
                    await self.networks.upkeep.sweep(network)
                    await asyncio.sleep(TURN_SECONDS)
        except TimeoutError:
            self.outcome.left = self._new_traces(before)

    def _new_traces(self, before: list[str]) -> list[str]:
        return sorted(set(self.node.traces()) - set(before))


def prepare(node: OwnNode) -> FaultyPlugins:
    """The node's plugins become faulty ones, which do not fail yet."""
    plugins = FaultyPlugins(node.folder / "faulty", PLUGINS)
    plugins.write()
    node.plugins, node.patience = (plugins.folder,), PATIENCE
    node.write()
    return plugins


def play(node: OwnNode, *, total: int, seed: int) -> Outcome:
    """Run `total` lives. Raises a group of what the neighbours or the upkeep fail with."""
    return asyncio.run(_play(node, total, seed))


async def _play(node: OwnNode, total: int, seed: int) -> Outcome:
    plugins = prepare(node)
    starts = Starts(node, plugins, await node.agent(), Random(seed))
    server, address = await starts.neighbour(tcp(NEIGHBOUR_PORT))
    client, _ = await starts.neighbour(of=server)
    before = node.traces()
    conversation = Conversation(node.netns(server.uid), node.netns(client.uid), address)
    plugins.fail(PERCENT)

    try:
        async with asyncio.TaskGroup() as beside:
            others = [beside.create_task(starts.look_after()), beside.create_task(starts.talk(conversation))]
            async with asyncio.TaskGroup() as lives:
                for number in range(total):
                    lives.create_task(starts.life(number, total))
            for other in others:
                other.cancel()
        plugins.fail(0)
        await starts.sweep(before)
        await asyncio.to_thread(conversation.exchange, b"still here")
    finally:
        conversation.close()
    assert set(before) <= set(node.traces()), "what the neighbours had is still there"
    for ref in (server, client):
        await starts.networks.sandbox.remove(ref)
        node.known.discard(Uid(ref.uid))
    starts.outcome.left += node.traces()
    starts.outcome.told = plugins.told()
    return starts.outcome
