"""Lives that reserve, move and give back ports of one node while whoever holds them is killed at any instant.

A holder stands for a process: a kill drops the call that it is in the middle of (the transaction is left as it is) or
ends its connection on the server's side, and what comes after it knows only what the ledger says. Played by
`test_port_cycles` and, for as long as one likes, by `hack/chaos ports`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import psycopg
from psycopg import sql
from tests.integration.ledger.samples import NAME_A, NODE_A, ref

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, RuntimeRef, Uid
from perdure.api.network import PortPolicy, PortProtocol, RuntimePort
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.controller import PostgresControllerLedger
from perdure.ledger.database import Database
from perdure.ledger.migrate import migrate
from perdure.plan.allotment import NodePort, PortDemand, PortRange, Transport, transports
from perdure.plan.binding import Refused
from perdure.reconcile.ports.errors import LedgerUnavailable
from perdure.reconcile.ports.ledger import Binding

T = TypeVar("T")

CLUSTER = InstallationId("cluster")
WITHIN = PortRange(7000, 7011)
"""About what the lives need at a time: there is always somebody who wants the same number."""
FIXED = range(7008, 7020)
"""What Static ports ask for; a part of it is drawn from, too."""
KILLS = 0.25
"""The share of calls in whose middle something is killed."""
LONGEST = 0.004
"""Seconds into a call until the kill; most calls are shorter."""

_ROWS = sql.SQL("SELECT protocol, port, uid FROM ports")
_END_SOMEBODY = sql.SQL("""
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND state IN ('active', 'idle in transaction')
   AND backend_type = 'client backend'
 ORDER BY random() LIMIT 1
""")


@dataclass(slots=True)
class Told:
    """Who was told which number and has not begun to give it back; who still has an object; what happened."""

    holders: dict[NodePort, Uid] = field(default_factory=dict)
    living: set[Uid] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)

    def claim(self, of: RuntimeRef, ports: tuple[RuntimePort, ...], numbers: dict[str, int]) -> None:
        """Fails if somebody else was told of one of these numbers."""
        for port in ports:
            for transport in transports(port.protocol):
                at = NodePort(transport, numbers[port.name])
                other = self.holders.setdefault(at, of.uid)
                assert other == of.uid, f"{at} was given to {of.uid} and is {other}'s"

    def forget(self, of: RuntimeRef) -> None:
        """To be called before anything is given back: somebody else may have it before the answer is here."""
        self.holders = {at: uid for at, uid in self.holders.items() if uid != of.uid}


class Holder:
    """One process after another, with a controller's and an agent's ledger of its own."""

    def __init__(self, url: str, server: psycopg.AsyncConnection, told: Told, draw: random.Random) -> None:
        """`server`: where connections are ended from."""
        self.database = Database(url)
        self._server = server
        self._controller = PostgresControllerLedger(self.database, CLUSTER)
        self._agent = PostgresAgentLedger(self.database, CLUSTER, NODE_A)
        self._told = told
        self._draw = draw

    async def live(self, uid: str) -> None:
        """One life of one runtime, from its binding to its end."""
        of, told = ref(uid, name=uid), self._told
        told.living.add(of.uid)
        ports = self._some_ports("abc"[: self._draw.randint(1, 3)])
        bound = await self._bind(of, ports)
        if isinstance(bound, Refused):
            told.counts[bound.reason.value] += 1
            told.living.discard(of.uid)
            return
        told.claim(of, ports, bound)
        assert await self._bind(of, ports) == bound, "a repetition got another answer"
        bound = await self._move(of, ports, bound)
        if self._draw.random() < 0.3:
            ports, bound = await self._edit(of, ports, bound)
        published = self._draw.random() < 0.5
        if published:
            await self._publish(of, ports, bound)
        await self._end(of, published=published)

    async def _bind(self, of: RuntimeRef, ports: tuple[RuntimePort, ...]) -> dict[str, int] | Refused:
        demand = PortDemand(ports, WITHIN)
        answer = await self._call(lambda: self._controller.bind(of, NAME_A, NODE_A, "image:1", demand))
        return dict(answer.ports) if isinstance(answer, Binding) else answer

    async def _move(self, of: RuntimeRef, ports: tuple[RuntimePort, ...], bound: dict[str, int]) -> dict[str, int]:
        """Something else listens on the number of a port: it gets another one, once however often it is asked for."""
        port = self._draw.choice(ports)
        taken = bound[port.name]
        self._told.forget(of)
        answer = await self._call(lambda: self._agent.replace_port(of, NAME_A, port.name, taken))
        if isinstance(answer, int):
            assert answer != taken
            assert port.policy is PortPolicy.DYNAMIC
            bound = bound | {port.name: answer}
            self._told.counts["moved"] += 1
        else:
            assert isinstance(answer, Refused), f"{port.name} of {of.uid} was lost"
            static = port.policy is PortPolicy.STATIC
            assert answer.reason is (Reason.PORT_TAKEN if static else Reason.PORT_RANGE_EXHAUSTED)
        self._told.claim(of, ports, bound)
        assert await self._bind(of, ports) == bound
        return bound

    async def _edit(
        self, of: RuntimeRef, ports: tuple[RuntimePort, ...], bound: dict[str, int]
    ) -> tuple[tuple[RuntimePort, ...], dict[str, int]]:
        """One port goes, another comes, the others keep their numbers."""
        wanted = (*ports[1:], *self._some_ports("d"))
        self._told.forget(of)
        answer = await self._bind(of, wanted)
        if isinstance(answer, Refused):
            self._told.claim(of, ports, bound)
            return ports, bound
        assert all(answer[port.name] == bound[port.name] for port in ports[1:]), "a port that stays was moved"
        self._told.claim(of, wanted, answer)
        self._told.counts["edited"] += 1
        return wanted, answer

    async def _publish(self, of: RuntimeRef, ports: tuple[RuntimePort, ...], bound: dict[str, int]) -> None:
        assert await self._call(lambda: self._agent.ports_published(of, bound))
        name = ports[0].name
        refused = await self._call(lambda: self._agent.replace_port(of, NAME_A, name, bound[name]))
        assert isinstance(refused, Refused)
        assert refused.reason is Reason.PORT_TAKEN

    async def _end(self, of: RuntimeRef, *, published: bool) -> None:
        """Most are let go as they should be; others go when nobody looks, and are found by `give_back_what_is_left`."""
        if self._draw.random() < 0.8:
            self._told.forget(of)
            await self._call(lambda: self._controller.free_ports(of))
        elif published:
            await self._call(lambda: self._controller.force_release(of, "nobody waited for its node"))
        self._told.living.discard(of.uid)

    async def give_back_what_is_left(self) -> None:
        """What the controller's sweep does."""
        for of in await self._call(lambda: self._controller.abandoned_ports(0.0)):
            if of.uid not in self._told.living:
                self._told.forget(of)
                await self._call(lambda of=of: self._controller.free_ports(of))  # type: ignore[misc]
                self._told.counts["swept"] += 1

    def _some_ports(self, names: str) -> tuple[RuntimePort, ...]:
        fixed = self._draw.sample(FIXED, len(names))
        return tuple(self._some_port(name, number) for name, number in zip(names, fixed, strict=True))

    def _some_port(self, name: str, number: int) -> RuntimePort:
        protocol = self._draw.choice(list(PortProtocol))
        port = RuntimePort(name=name, container_port=80, protocol=protocol)
        if self._draw.random() < 0.25:
            return msgspec.structs.replace(port, policy=PortPolicy.STATIC, host_port=number)
        return port

    async def _call(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Repeated by one process after another until one of them lives to see the answer."""
        while True:
            call = asyncio.ensure_future(operation())
            kill = self._draw.choice((self._drop, self._end_a_connection)) if self._draw.random() < KILLS else None
            killing = asyncio.ensure_future(kill(call)) if kill is not None else None
            try:
                return await call
            except asyncio.CancelledError:
                if not call.cancelled():
                    raise
                self._told.counts["dropped"] += 1
            except LedgerUnavailable:
                self._told.counts["cut off"] += 1
            finally:
                if killing is not None:
                    await killing

    async def _drop(self, call: asyncio.Future[T]) -> None:
        await asyncio.wait([call], timeout=self._draw.uniform(0, LONGEST))
        call.cancel()

    async def _end_a_connection(self, call: asyncio.Future[T]) -> None:
        """Of whoever is in the middle of something, perhaps this call."""
        ended = await (await self._server.execute(_END_SOMEBODY)).fetchone()
        self._told.counts["ended"] += ended is not None


async def play(url: str, *, cycles: int, holders: int, seed: int) -> Counter[str]:
    """Play so many lives; what happened. Raises AssertionError for a number that two have, that is lost or that leaks."""
    draw, told = random.Random(seed), Told()
    lives = iter(range(cycles))

    async def work(holder: Holder) -> None:
        for number in lives:
            await holder.live(f"life-{number}")
            told.counts["cycles"] += 1
            if number % 20 == 0:
                await holder.give_back_what_is_left()

    async with (
        Database(url) as database,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as server,
    ):
        await migrate(database)
        crowd = [Holder(url, server, told, random.Random(draw.randrange(2**32))) for _ in range(holders)]
        for holder in crowd:
            await holder.database.open()
        try:
            async with asyncio.TaskGroup() as group:
                for holder in crowd:
                    group.create_task(work(holder))
            assert await _reserved(database) == told.holders, "the ledger has something else than what was told"
            await crowd[0].give_back_what_is_left()
            assert await _reserved(database) == {}, "ports of lives that are over were left"
        finally:
            for holder in crowd:
                await holder.database.close()
    return told.counts


async def _reserved(database: Database) -> dict[NodePort, Uid]:
    rows = await database.rows("reading all ports", _ROWS, {})
    return {NodePort(Transport(row["protocol"]), row["port"]): Uid(row["uid"]) for row in rows}
