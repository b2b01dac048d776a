"""In which order a number becomes a port: reserved, not listened on by others, published, journalled, and only then served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast

import msgspec
import pytest
from tests.fakes.journal import FakeJournal, JournalDisk
from tests.fakes.ledger import FakeAgentLedger, FakeControllerLedger, LedgerTables
from tests.fakes.sandbox import FakeSandbox, SandboxState
from tests.property.worlds import NODE, NODE_NAME, REF, Draw

from perdure.api.conditions import Reason
from perdure.api.names import ANNOTATION_HOST_PORTS, InstallationId, Uid
from perdure.api.network import NetworkMode, PortPolicy, RuntimePort, write_host_ports
from perdure.api.runtime import RuntimeSpec
from perdure.plan.allotment import PortDemand, PortRange, wanted_ports
from perdure.plan.world import HostPort, Observed, Record, SandboxFacts, Wanted, World
from perdure.reconcile.hands import Hands, Place
from perdure.reconcile.network_steps import PORTS_TRIED, NetworkSteps
from perdure.reconcile.ports.errors import PortError, PortHeld, PortTaken
from perdure.reconcile.ports.sandbox import SandboxPlan

GAME = RuntimePort(name="game", container_port=7777)
RCON = RuntimePort(name="rcon", container_port=25575, policy=PortPolicy.STATIC, host_port=9000)
WIDE = PortRange(7000, 7100)
WORK = frozenset({"ledger.ports_published", "ledger.replace_port", "journal.commit", "sandbox.attach"})


class Killed(BaseException):
    pass


class Bench:
    """One runtime with an empty network on a node, and the calls that are made for it."""

    def __init__(self, *ports: RuntimePort) -> None:
        self.spec = RuntimeSpec(image="any", ports=ports)
        self.told: Mapping[str, int] = {}
        self.tables, self.disk, self.sandboxes = LedgerTables(), JournalDisk(), SandboxState()
        self.calls: list[str] = []
        self.kill_after: str | None = None
        self.controller = FakeControllerLedger(self.tables)
        self.journal = FakeJournal(self.disk, self._call)
        self.sandbox = FakeSandbox(self.sandboxes, self._call, has_network=True)
        hands = Hands(
            engine=cast(Any, None),
            sandbox=self.sandbox,
            archives=cast(Any, None),
            journal=self.journal,
            ledger=FakeAgentLedger(NODE, self.tables, self._call),
            cluster=cast(Any, None),
            leases=cast(Any, None),
            outbox=cast(Any, None),
            probe=cast(Any, None),
        )
        self.steps = NetworkSteps(hands, Place(InstallationId("i"), NODE_NAME, NODE))

    def _call(self, name: str, when: Literal["before", "after"]) -> None:
        if when == "before":
            self.calls.append(name)
        elif name == self.kill_after:
            self.kill_after = None
            raise Killed(name)

    async def reserve(self, *, tell: bool = True, within: PortRange = WIDE, uid: Uid = REF.uid) -> Mapping[str, int]:
        """What the controller does: numbers in the ledger, then in the object."""
        demand = PortDemand(wanted_ports(self.spec), within)
        answer = await self.controller.bind(replace(REF, uid=uid), NODE_NAME, NODE, "any", demand)
        numbers: dict[str, int] = dict(answer.ports)  # type: ignore[union-attr]
        if tell:
            self.told = numbers
        return numbers

    @property
    def world(self) -> World:
        text = write_host_ports(self.told)
        runtime = msgspec.structs.replace(
            Draw(1).runtime(terminating=False),
            spec=self.spec,
            annotations={ANNOTATION_HOST_PORTS: text} if text is not None else {},
        )
        return World(REF, Wanted(runtime), Observed(), self.disk.records.get(REF.uid, Record(ref=REF)))

    async def attach(self) -> list[str]:
        """Which of its calls change or settle something."""
        if REF.uid not in self.sandboxes.made:
            await self.sandbox.create(SandboxPlan(REF, self.spec))
        self.calls.clear()
        await self.steps.attach(self.world)
        return [call for call in self.calls if call in WORK]

    @property
    def served(self) -> dict[str, int]:
        return {port.name: port.host_port for port in self.sandboxes.made[REF.uid].ports}

    @property
    def published(self) -> dict[str, int]:
        """In the ledger."""
        return {
            entry.reservation.name: at.number
            for (_, at), entry in self.tables.ports.items()
            if entry.published and entry.uid == REF.uid
        }

    @property
    def journalled(self) -> dict[str, int]:
        return dict(self.disk.records[REF.uid].host_ports) if REF.uid in self.disk.records else {}

    def is_settled_at(self, **numbers: int) -> bool:
        return self.served == self.published == self.journalled == numbers


SETTLED = ["ledger.ports_published", "journal.commit", "sandbox.attach"]


async def test_a_number_is_published_then_journalled_then_served() -> None:
    bench = Bench(GAME)
    await bench.reserve()
    assert await bench.attach() == SETTLED
    assert bench.is_settled_at(game=7000)


async def test_a_runtime_without_ports_asks_no_ledger_and_writes_no_journal() -> None:
    bench = Bench()
    assert await bench.attach() == ["sandbox.attach"]
    assert bench.disk.records == {}


async def test_what_was_published_once_is_served_again_without_the_ledger() -> None:
    bench = Bench(GAME, RCON)
    await bench.reserve()
    await bench.attach()
    bench.tables.away = "connection refused"
    assert await bench.attach() == ["sandbox.attach"]
    assert bench.served == {"game": 7000, "rcon": 9000}


async def test_a_ledger_that_is_away_lets_no_number_be_served() -> None:
    bench = Bench(GAME)
    await bench.reserve()
    bench.tables.away = "connection refused"
    with pytest.raises(PortError) as caught:
        await bench.attach()
    assert caught.value.reason is Reason.LEDGER_UNAVAILABLE
    assert (bench.served, bench.journalled) == ({}, {})


# ---------------------------------------------------------------------------------------------- others listen


async def test_numbers_that_others_listen_on_are_passed_over_before_the_first_publication() -> None:
    bench = Bench(GAME)
    await bench.reserve()
    bench.sandboxes.foreign_listeners = {7000, 7001}
    assert await bench.attach() == ["ledger.replace_port", "ledger.replace_port", *SETTLED]
    assert bench.is_settled_at(game=7002)


async def test_a_published_number_that_is_taken_later_is_not_replaced() -> None:
    bench = Bench(GAME)
    await bench.reserve()
    await bench.attach()
    bench.sandboxes.made.clear()
    bench.sandboxes.foreign_listeners = {7000}
    with pytest.raises(PortTaken, match="7000/TCP"):
        await bench.attach()
    assert "ledger.replace_port" not in bench.calls
    assert (bench.served, bench.published) == ({}, {"game": 7000})


async def test_a_new_port_does_not_move_one_that_is_published_and_taken() -> None:
    bench = Bench(GAME)
    await bench.reserve()
    await bench.attach()
    bench.sandboxes.made.clear()
    bench.spec = msgspec.structs.replace(bench.spec, ports=(GAME, RuntimePort(name="more", container_port=1)))
    await bench.reserve()
    bench.sandboxes.foreign_listeners = {7000}
    with pytest.raises(PortError, match="it was published and stays") as caught:
        await bench.attach()
    assert caught.value.reason is Reason.PORT_TAKEN
    assert bench.published == bench.journalled == {"game": 7000}


async def test_a_static_port_that_is_taken_is_refused_with_the_way_out() -> None:
    bench = Bench(RCON)
    await bench.reserve()
    bench.sandboxes.foreign_listeners = {9000}
    with pytest.raises(PortError, match="its policy is Static") as caught:
        await bench.attach()
    assert caught.value.reason is Reason.PORT_TAKEN
    assert (bench.served, bench.published) == ({}, {})


def served_by_another(number: int) -> SandboxFacts:
    """A runtime of the node whose reservation has ended, and whose network is still there."""
    port = HostPort("old", "TCP", 80, number)
    return SandboxFacts("/run/netns/other", NetworkMode.CNI, True, ("10.0.0.9",), (port,))


async def test_a_number_that_still_leads_into_another_runtime_is_passed_over_before_it_is_published() -> None:
    bench = Bench(GAME)
    await bench.reserve()
    bench.sandboxes.made[Uid("other")] = served_by_another(7000)
    await bench.attach()
    assert bench.is_settled_at(game=7001)


async def test_a_static_number_that_still_leads_into_another_runtime_is_waited_for() -> None:
    bench = Bench(RCON)
    await bench.reserve()
    bench.sandboxes.made[Uid("other")] = served_by_another(9000)
    with pytest.raises(PortHeld, match="still leads into other") as caught:
        await bench.attach()
    assert (caught.value.reason, caught.value.user_error, caught.value.of_node) == (Reason.PORT_TAKEN, False, False)
    assert (bench.served, bench.published) == ({}, {})
    del bench.sandboxes.made[Uid("other")]
    await bench.attach()
    assert bench.is_settled_at(rcon=9000)


async def test_ports_that_are_led_out_are_forgotten_with_their_names_and_no_ledger_is_asked() -> None:
    bench = Bench(GAME, RCON)
    await bench.reserve()
    await bench.attach()
    bench.spec = msgspec.structs.replace(bench.spec, ports=(GAME,))
    (game,) = (port for port in bench.sandboxes.made[REF.uid].ports if port.name == "game")
    bench.calls.clear()
    await bench.steps.lead_out(bench.world, (game,))
    assert [call for call in bench.calls if call in WORK] == ["journal.commit", "sandbox.attach"]
    assert bench.served == bench.journalled == {"game": 7000}


async def test_a_range_without_a_free_number_is_said() -> None:
    bench = Bench(GAME)
    await bench.reserve(within=PortRange(7000, 7000))
    bench.sandboxes.foreign_listeners = {7000}
    with pytest.raises(PortError, match="7000-7000") as caught:
        await bench.attach()
    assert caught.value.reason is Reason.PORT_RANGE_EXHAUSTED


async def test_one_start_does_not_try_a_whole_range() -> None:
    bench = Bench(GAME)
    await bench.reserve()
    bench.sandboxes.foreign_listeners = set(range(7000, 7100))
    with pytest.raises(PortTaken):
        await bench.attach()
    assert bench.calls.count("ledger.replace_port") == PORTS_TRIED - 1
    assert bench.published == {}


# ---------------------------------------------------------------------------------------------- killed on the way


@pytest.mark.parametrize("where", ["ledger.replace_port", "ledger.ports_published", "journal.commit", "sandbox.attach"])
@pytest.mark.parametrize("listener_ends", [False, True])
async def test_whoever_comes_after_a_kill_settles_on_one_number(where: str, listener_ends: bool) -> None:
    bench = Bench(GAME)
    await bench.reserve()
    bench.sandboxes.foreign_listeners = {7000}
    bench.kill_after = where
    with pytest.raises(Killed):
        await bench.attach()
    if listener_ends:
        bench.sandboxes.foreign_listeners = set()
    await bench.attach()
    assert bench.is_settled_at(game=7001)
    assert await bench.reserve() == {"game": 7001}


# ---------------------------------------------------------------------------------------------- edits


async def test_numbers_that_the_object_does_not_show_yet_are_read_from_the_ledger() -> None:
    bench = Bench(GAME)
    await bench.reserve()
    await bench.controller.free_ports(REF)
    assert await bench.reserve(tell=False) == {"game": 7001}
    await bench.attach()
    assert bench.is_settled_at(game=7001)


async def test_a_port_that_was_given_back_is_not_served() -> None:
    bench = Bench(GAME)
    await bench.reserve()
    await bench.controller.free_ports(REF)
    with pytest.raises(PortError, match="not reserved any more"):
        await bench.attach()
    assert (bench.served, bench.journalled) == ({}, {})


async def test_a_number_of_a_port_that_was_taken_out_does_not_come_back_with_its_name() -> None:
    bench = Bench(GAME)
    await bench.reserve()
    await bench.attach()
    bench.spec = msgspec.structs.replace(bench.spec, ports=())
    await bench.reserve()
    assert await bench.attach() == ["journal.commit", "sandbox.attach"]
    assert (bench.served, bench.journalled) == ({}, {})
    bench.spec = msgspec.structs.replace(bench.spec, ports=(GAME,))
    await bench.reserve()
    await bench.attach()
    assert bench.is_settled_at(game=7001)


async def test_a_number_that_became_anothers_while_nobody_looked_is_given_up() -> None:
    """Taken out and put back while the agent was away: its journal has a number that another life has by now."""
    bench = Bench(GAME)
    await bench.reserve()
    await bench.attach()
    await bench.controller.free_ports(REF)
    await bench.reserve(tell=False, within=PortRange(7000, 7000), uid=Uid("another"))
    bench.sandboxes.made.clear()
    await bench.reserve()
    await bench.attach()
    assert bench.is_settled_at(game=7001)


async def test_a_static_port_moves_when_its_person_says_so() -> None:
    bench = Bench(GAME, RCON)
    await bench.reserve()
    await bench.attach()
    bench.spec = msgspec.structs.replace(bench.spec, ports=(GAME, msgspec.structs.replace(RCON, host_port=9001)))
    await bench.reserve()
    assert await bench.attach() == SETTLED
    assert bench.is_settled_at(game=7000, rcon=9001)


async def test_a_port_that_waits_for_its_number_takes_nothing_from_the_others() -> None:
    bench = Bench(GAME)
    await bench.reserve()
    await bench.attach()
    bench.spec = msgspec.structs.replace(bench.spec, ports=(GAME, RCON))
    await bench.attach()
    assert bench.is_settled_at(game=7000)


async def test_numbers_that_the_object_lost_are_kept() -> None:
    bench = Bench(GAME)
    await bench.reserve()
    await bench.attach()
    bench.told = {}
    await bench.steps.repair(bench.world, "the rules are gone")
    assert bench.is_settled_at(game=7000)


# ---------------------------------------------------------------------------------------------- without a network


async def test_a_runtime_whose_spec_wants_no_network_gets_a_namespace_alone() -> None:
    bench = Bench()
    bench.spec = msgspec.structs.replace(
        bench.spec, network=msgspec.structs.replace(bench.spec.network, mode=NetworkMode.NONE)
    )
    await bench.steps.create(bench.world, None)
    assert await bench.attach() == []
    assert bench.sandboxes.made[REF.uid].mode is NetworkMode.NONE
