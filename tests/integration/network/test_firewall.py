"""The firewall on this machine's kernel, with real traffic between network namespaces of the test's own."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest
from tests.integration.network.node import (
    BRIDGE,
    GATEWAY4,
    GATEWAY6,
    METADATA4,
    METADATA6,
    OUTSIDE4,
    OUTSIDE6,
    RULES,
    SILENCE_SECONDS,
    Node,
    in_namespace,
)

from perdure.api.names import InstallationId, NamespaceUid, Uid
from perdure.network.command import CommandFailed
from perdure.network.firewall import Firewall
from perdure.network.rules import Allowed, Member
from perdure.reconcile.ports.errors import SandboxFailed

pytestmark = pytest.mark.root

PORT = 7777
BOTH_VERSIONS = pytest.mark.parametrize("version", [4, 6])


@dataclass
class World:
    """`near` and `sibling` are of one namespace, `stranger` is of another; each has a listener on `PORT`."""

    node: Node
    firewall: Firewall
    near: Member
    sibling: Member
    stranger: Member

    def opens(self, source: Member, target: Member, version: int) -> bool:
        return self.node.reaches(source.uid, address(target, version), PORT)

    def closed(self, source: Member, target: Member, version: int) -> bool:
        return self.node.is_silent(source.uid, address(target, version), PORT)

    async def wipe(self) -> None:
        """What other software on a node may do to its rules."""
        for command in (
            ("iptables", "-F"),
            ("iptables", "-t", "nat", "-F"),
            ("ip6tables", "-F"),
            ("nft", "flush", "ruleset"),
        ):
            self.node.run(*command)


def address(member: Member, version: int) -> str:
    return next(str(found) for found in member.addresses if found.version == version)


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture
async def world(node: Node) -> AsyncIterator[World]:
    near, sibling, stranger = node.member(11, "one"), node.member(12, "one"), node.member(13, "two")
    firewall = Firewall(RULES, node.launcher)
    await firewall.restore([near, sibling, stranger])
    servers = [
        node.listen(member.uid, str(at), PORT) for member in (near, sibling, stranger) for at in member.addresses
    ]
    yield World(node, firewall, near, sibling, stranger)
    for server in servers:
        server.close()


@pytest.fixture(params=["programmed", "wiped and ensured"])
async def either(request: pytest.FixtureRequest, world: World) -> World:
    """The world as it was made, and after somebody flushed every rule of the node."""
    if request.param != "programmed":
        await world.wipe()
        assert await world.firewall.ensure()
    return world


@BOTH_VERSIONS
async def test_runtimes_reach_those_of_their_namespace_alone(either: World, version: int) -> None:
    assert either.opens(either.near, either.sibling, version)
    assert either.closed(either.near, either.stranger, version)
    assert either.closed(either.stranger, either.near, version)


@BOTH_VERSIONS
async def test_without_the_firewall_they_reach_each_other(world: World, version: int) -> None:
    await world.firewall.remove()
    assert world.opens(world.near, world.stranger, version)
    assert await world.firewall.restore([world.near, world.sibling, world.stranger]) != ()
    assert world.closed(world.near, world.stranger, version)


@BOTH_VERSIONS
async def test_an_allowed_pair_opens_one_way(either: World, version: int) -> None:
    await either.firewall.allow([Allowed(either.near.uid, either.stranger.uid)])
    assert await either.firewall.verify() == ()
    assert either.opens(either.near, either.stranger, version)
    assert either.closed(either.stranger, either.near, version)
    assert either.closed(either.sibling, either.stranger, version)
    await either.firewall.allow([])
    assert await either.firewall.verify() == ()
    assert either.closed(either.near, either.stranger, version)


@BOTH_VERSIONS
async def test_the_same_holds_where_bridged_packets_are_filtered_as_routed(world: World, version: int) -> None:
    world.node.filter_bridged_as_routed(True)
    await world.firewall.allow([Allowed(world.sibling.uid, world.stranger.uid)])
    assert world.opens(world.near, world.sibling, version)
    assert world.opens(world.sibling, world.stranger, version)
    assert world.closed(world.near, world.stranger, version)


@BOTH_VERSIONS
async def test_the_way_through_the_node_is_closed_too(world: World, version: int) -> None:
    """A host route to the gateway makes the node route what the bridge would have carried."""
    via = GATEWAY4 if version == 4 else GATEWAY6
    for source, target in ((world.near, world.stranger), (world.near, world.sibling)):
        world.node.run("ip", f"-{version}", "route", "add", address(target, version), "via", via, space=source.uid)
    world.node.run("sysctl", "-qw", "net.ipv4.conf.all.send_redirects=0", f"net.ipv4.conf.{BRIDGE}.send_redirects=0")
    own = address(world.near, version)
    with (
        world.node.receive(world.sibling.uid, address(world.sibling, version), PORT) as open_to_it,
        world.node.receive(world.stranger.uid, address(world.stranger, version), PORT) as closed_to_it,
    ):
        assert world.node.delivers(world.near.uid, own, open_to_it)
        assert world.node.loses(world.near.uid, own, closed_to_it)
    assert world.opens(world.near, world.sibling, version)
    assert world.closed(world.near, world.stranger, version)


@BOTH_VERSIONS
async def test_masquerade_leads_out_with_the_node_s_address(either: World, version: int) -> None:
    there = OUTSIDE4 if version == 4 else OUTSIDE6
    with (
        either.node.listen(either.node.space("out"), there, PORT) as server,
        either.node.connect(either.near.uid, there, PORT),
    ):
        seen, peer = server.accept()
        seen.close()
    assert peer[0] == ("192.0.2.1" if version == 4 else "2001:db8::1")


async def test_traffic_that_stays_on_the_bridge_keeps_its_address(world: World) -> None:
    """Also where the node routes it to something behind a member."""
    behind = "198.51.100.1"
    world.node.run("ip", "addr", "add", f"{behind}/32", "dev", "lo", space=world.sibling.uid)
    world.node.run("ip", "route", "add", behind, "via", address(world.sibling, 4))
    for there in (address(world.sibling, 4), behind):
        with world.node.receive(world.sibling.uid, there, PORT) as server:
            assert world.node.delivers(world.near.uid, address(world.near, 4), server)


@pytest.mark.parametrize("there", [*METADATA4, *METADATA6])
async def test_nobody_reaches_the_metadata_service(either: World, there: str) -> None:
    with either.node.listen(either.node.space("out"), there, 80):
        assert either.node.reaches(either.node.name, there, 80)
        assert either.node.is_silent(either.near.uid, there, 80)


@BOTH_VERSIONS
async def test_a_name_server_where_metadata_are_is_asked_for_names_alone(world: World, version: int) -> None:
    there, other, *_ = METADATA4 if version == 4 else METADATA6
    everybody = [world.near, world.sibling, world.stranger]
    firewall = Firewall(replace(RULES, resolvers=(ip_address(there),)), world.node.launcher)
    outside = world.node.space("out")
    with world.node.listen(outside, there, 53), world.node.listen(outside, other, 53):
        assert world.node.is_silent(world.near.uid, there, 53)
        assert await firewall.restore(everybody)
        assert await firewall.verify() == ()
        assert world.node.reaches(world.near.uid, there, 53)
        assert world.node.is_silent(world.near.uid, other, 53)
    with world.node.listen(outside, there, 80):
        assert world.node.is_silent(world.near.uid, there, 80)
    with (
        world.node.receive(outside, there, 53) as server,
        in_namespace(world.near.uid, socket.SOCK_DGRAM, server.family) as client,
    ):
        client.sendto(b"who?", (there, 53))
        _, peer = server.recvfrom(16)
        server.sendto(b"me", peer)
        assert client.recv(16) == b"me"
    assert world.closed(world.near, world.stranger, version)


@pytest.mark.parametrize("there", [GATEWAY4, GATEWAY6, "192.0.2.1"])
async def test_the_node_answers_on_its_open_ports_alone(either: World, there: str) -> None:
    with either.node.listen(either.node.name, there, PORT), either.node.listen(either.node.name, there, 53):
        assert either.node.is_silent(either.near.uid, there, PORT)
        assert either.node.reaches(either.near.uid, there, 53)
        assert either.node.reaches(either.node.space("out"), "192.0.2.1", 9)


@BOTH_VERSIONS
async def test_the_node_reaches_runtimes(either: World, version: int) -> None:
    assert either.node.reaches(either.node.name, address(either.near, version), PORT)


PUBLISHED = """
table {word} published {{
  chain pre {{
    type nat hook prerouting priority dstnat; policy accept;
    {word} daddr {host} tcp dport 80 dnat to {to}:{port}
  }}
  chain post {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname {bridge} ct status dnat masquerade
  }}
}}
"""
"""What plugin `portmap` does, with its masquerade for those who are on the same bridge."""


@BOTH_VERSIONS
async def test_a_published_port_is_reached_from_outside(world: World, version: int) -> None:
    to, word, host = (
        (address(world.near, 4), "ip", "192.0.2.1")
        if version == 4
        else (f"[{address(world.near, 6)}]", "ip6", "2001:db8::1")
    )
    world.node.run("nft", "-f", "-", feed=PUBLISHED.format(word=word, host=host, to=to, port=PORT, bridge=BRIDGE))
    assert world.node.reaches(world.node.space("out"), host, 80)
    assert world.node.reaches(world.sibling.uid, host, 80)
    assert world.node.is_silent(world.stranger.uid, host, 80)


def assume(node: Node, member: Member, taken: str) -> None:
    """Give a runtime one more address, which may be another's."""
    which = [f"{taken}/64", "nodad"] if ":" in taken else [f"{taken}/24"]
    node.run("ip", "addr", "add", *which, "dev", "eth0", space=member.uid)


def forget_neighbours(node: Node, space: str, device: str) -> None:
    """Whoever asked in vain waits a second before the next question, longer than a test waits for silence."""
    for version in ("-4", "-6"):
        node.run("ip", version, "neigh", "flush", "dev", device, "nud", "all", space=space)


@BOTH_VERSIONS
async def test_a_borrowed_address_leads_nowhere(world: World, version: int) -> None:
    """The stranger takes the address of a silent sibling, which may reach `near`, and knows `near`'s MAC already."""
    taken = address(world.sibling, version)
    world.node.run("ip", "link", "set", "eth0", "down", space=world.sibling.uid)
    assume(world.node, world.stranger, taken)
    there = address(world.near, version)
    neighbour = (there, "lladdr", world.near.mac, "dev", "eth0")
    world.node.run("ip", "neigh", "replace", *neighbour, space=world.stranger.uid)
    with world.node.receive(world.near.uid, there, PORT) as server:
        assert world.node.loses(world.stranger.uid, taken, server)
        await world.firewall.remove()
        assert world.node.delivers(world.stranger.uid, taken, server)


@BOTH_VERSIONS
async def test_nobody_is_believed_to_have_another_s_address(world: World, version: int) -> None:
    """The stranger takes the address of a sibling that is silent; the node does not learn it."""
    taken = address(world.sibling, version)
    world.node.run("ip", "link", "set", "eth0", "down", space=world.sibling.uid)
    assume(world.node, world.stranger, taken)
    with world.node.listen(world.stranger.uid, taken, PORT + 2):
        with pytest.raises(OSError):
            world.node.connect(world.node.name, taken, PORT + 2, SILENCE_SECONDS)
        assert world.stranger.mac not in world.node.run("ip", "neigh", "show", taken)
        await world.firewall.remove()
        forget_neighbours(world.node, world.node.name, BRIDGE)
        world.node.connect(world.node.name, taken, PORT + 2).close()


async def test_a_forged_answer_about_a_neighbour_is_not_believed(world: World) -> None:
    """Sent from the stranger's own address, about the sibling's: what the source alone does not give away."""
    taken = address(world.sibling, 6)
    world.node.connect(world.node.name, taken, PORT).close()
    option = bytes([2, 1]) + bytes.fromhex(world.stranger.mac.replace(":", ""))
    forged = bytes([136, 0, 0, 0, 0x60, 0, 0, 0]) + ip_address(taken).packed + option
    with in_namespace(world.stranger.uid, socket.SOCK_RAW, socket.AF_INET6, socket.IPPROTO_ICMPV6) as liar:
        liar.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)

        def believed() -> bool:
            """The node has handled it once it has answered an echo that was sent after it."""
            liar.sendto(forged, (GATEWAY6, 0))
            liar.sendto(bytes([128, 0, 0, 0, 0, 1, 0, 1]), (GATEWAY6, 0))
            while liar.recv(256)[0] != 129:
                pass
            return world.stranger.mac in world.node.run("ip", "-6", "neigh", "show", taken)

        assert not believed()
        await world.firewall.remove()
        assert believed()


async def test_a_borrowed_mac_is_not_learnt(world: World) -> None:
    world.node.run("ip", "link", "set", "eth0", "address", world.near.mac, space=world.stranger.uid)
    assert world.node.is_silent(world.stranger.uid, GATEWAY4, 53)
    assert world.opens(world.sibling, world.near, 4)


async def test_what_is_verified_is_not_written_again(world: World) -> None:
    before = world.node.run("nft", "-a", "list", "ruleset")
    assert await world.firewall.ensure() == ()
    assert await world.firewall.ensure() == ()
    again = Firewall(RULES, world.node.launcher)
    assert await again.restore([world.stranger, world.near, world.sibling]) == ()
    assert world.node.run("nft", "-a", "list", "ruleset") == before


@pytest.mark.parametrize(
    "damage",
    [
        "flush chain bridge {table} between",
        "delete table inet {table}",
        "delete table bridge {table}",
        "insert rule inet {table} input accept",
        "delete element bridge {table} owners4 {{ 10.88.0.11 }}",
        "add element inet {table} allowed4 {{ 10.88.0.11 . 10.88.0.13 }}",
        "add chain inet {table} foreign",
        "flush chain inet {table} postrouting",
    ],
)
async def test_every_damage_is_seen_and_repaired(world: World, damage: str) -> None:
    world.node.run("nft", damage.format(table=RULES.table))
    assert await world.firewall.verify()
    assert await world.firewall.ensure()
    assert await world.firewall.verify() == ()


async def test_an_admission_after_a_flush_restores_everybody(world: World) -> None:
    world.node.run("nft", "flush", "ruleset")
    newcomer = world.node.member(14, "two")
    await world.firewall.admit(newcomer)
    assert await world.firewall.verify() == ()
    assert world.opens(newcomer, world.stranger, 4)
    assert world.closed(newcomer, world.near, 4)
    assert world.opens(world.near, world.sibling, 4)


@BOTH_VERSIONS
async def test_who_was_not_admitted_reaches_nobody_under_any_address(world: World, version: int) -> None:
    newcomer = world.node.member(15, "one")
    assert world.closed(newcomer, world.near, version)
    world.node.run("ip", "link", "set", "eth0", "down", space=world.sibling.uid)
    world.node.run("ip", f"-{version}", "addr", "flush", "dev", "eth0", "scope", "global", space=newcomer.uid)
    assume(world.node, newcomer, address(world.sibling, version))
    assert world.closed(newcomer, world.near, version)
    await world.firewall.admit(replace(newcomer, addresses=world.sibling.addresses))
    for member in (newcomer, world.near):
        forget_neighbours(world.node, member.uid, "eth0")
    world.node.connect(newcomer.uid, address(world.near, version), PORT).close()


async def test_who_was_expelled_reaches_nobody(world: World) -> None:
    await world.firewall.expel(world.near.uid)
    await world.firewall.expel(world.near.uid)
    assert await world.firewall.verify() == ()
    assert world.closed(world.near, world.sibling, 4)
    forget_neighbours(world.node, world.near.uid, "eth0")
    await world.firewall.admit(world.near)
    await world.firewall.admit(world.near)
    assert await world.firewall.verify() == ()
    assert world.opens(world.near, world.sibling, 4)


async def test_an_address_that_another_has_now_is_the_other_s(world: World) -> None:
    """The stranger's port and addresses go to a runtime of the first namespace; nothing of the second is left."""
    heir = replace(world.stranger, uid=Uid("heir"), namespace=NamespaceUid("one"))
    await world.firewall.admit(heir)
    assert await world.firewall.verify() == ()
    assert {member.uid for member in world.firewall.members} == {world.near.uid, world.sibling.uid, "heir"}
    assert world.opens(world.near, world.stranger, 4)
    assert "two" not in {member.namespace for member in world.firewall.members}


async def test_another_installation_s_tables_are_left_alone(world: World) -> None:
    other = Firewall(replace(RULES, installation=InstallationId("another"), bridge="br9"), world.node.launcher)
    await other.restore([])
    await world.firewall.remove()
    await world.firewall.remove()
    assert await other.verify() == ()
    left = world.node.run("nft", "list", "tables")
    assert RULES.table not in left
    assert left.count(other.rules.table) == 2


async def test_open_connections_outlive_every_change(world: World) -> None:
    """Bridged and masqueraded, through everything that the firewall does."""
    node, firewall = world.node, world.firewall
    with (
        node.listen(node.space("out"), OUTSIDE4, PORT) as outside,
        node.listen(world.sibling.uid, address(world.sibling, 4), PORT + 1) as inside,
        node.connect(world.near.uid, OUTSIDE4, PORT) as out,
        node.connect(world.near.uid, address(world.sibling, 4), PORT + 1) as across,
        outside.accept()[0] as out_end,
        inside.accept()[0] as across_end,
    ):

        def talk(word: str) -> None:
            for here, there in ((out, out_end), (across, across_end)):
                there.settimeout(10)
                here.sendall(word.encode())
                assert there.recv(64).decode() == word
                there.sendall(word.encode())
                assert here.recv(64).decode() == word

        talk("begin")
        for number in range(5):
            newcomer = node.member(20 + number, f"space-{number % 2}")
            await firewall.admit(newcomer)
            talk(f"admitted {number}")
            await firewall.allow([Allowed(newcomer.uid, world.near.uid)])
            node.run("nft", "delete", "table", "inet" if number % 2 else "bridge", RULES.table)
            assert await firewall.ensure()
            talk(f"repaired {number}")
            await firewall.expel(newcomer.uid)
            talk(f"expelled {number}")
        await world.wipe()
        await firewall.ensure()
        talk("restored")


async def test_changes_at_the_same_time_are_made_one_by_one(world: World) -> None:
    newcomers = [
        replace(world.near, uid=Uid(f"n{number}"), port=f"vx{number}", mac=f"02:00:00:00:01:{number:02x}", addresses=())
        for number in range(10)
    ]
    async with asyncio.TaskGroup() as group:
        for newcomer in newcomers:
            group.create_task(world.firewall.admit(newcomer))
        group.create_task(world.firewall.ensure())
    assert await world.firewall.verify() == ()
    assert len(world.firewall.members) == 13


async def test_before_the_members_are_known_nothing_is_done(world: World) -> None:
    fresh = Firewall(RULES, world.node.launcher)
    for attempt in (fresh.ensure(), fresh.admit(world.near), fresh.expel(world.near.uid), fresh.allow([])):
        with pytest.raises(SandboxFailed, match="not known yet"):
            await attempt
    assert await world.firewall.verify() == ()


async def test_missing_tools_and_rights_are_named(node: Node) -> None:
    with pytest.raises(CommandFailed, match=r"nowhere|cannot be run"):
        await Firewall(RULES, ("/nowhere/launcher",)).restore([])
    powerless = (
        "setpriv",
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
        "unshare",
        "--user",
        "--map-root-user",
    )
    with pytest.raises(CommandFailed, match="CAP_NET_ADMIN"):
        await Firewall(RULES, (*node.launcher, *powerless)).restore([])


async def test_a_thousand_members_are_a_few_hundred_milliseconds(node: Node) -> None:
    """One change costs about the same whether there are three members or a thousand; the bound is for a starved machine."""
    firewall = Firewall(RULES, node.launcher)
    crowd = [
        Member(
            Uid(f"u{n}"),
            NamespaceUid(f"ns{n % 250}"),
            f"v{n}",
            f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}",
            (ip_address("10.88.4.0") + n, ip_address("fd88::1000") + n),
        )
        for n in range(1000)
    ]
    began = time.monotonic()
    await firewall.restore(crowd[:-1])
    whole = time.monotonic()
    await firewall.admit(crowd[-1])
    one = time.monotonic()
    assert await firewall.ensure() == ()
    checked = time.monotonic()
    print(f"restore {whole - began:.3f} s, admit {one - whole:.3f} s, ensure {checked - one:.3f} s")
    assert one - whole < 2
