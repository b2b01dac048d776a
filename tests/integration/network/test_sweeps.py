"""What real plugins leave behind when a runtime goes without DEL, and its removal; what is alive or foreign stays."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import pytest
from tests.integration.network.node import Node

from perdure.network import bridge, leftovers
from perdure.network.cni.cache import Cache, Record
from perdure.network.container_ids import ContainerIds
from perdure.network.sweeps import Known, LeftoverKind, Places, Sweeper, Swept

pytestmark = pytest.mark.root

PLUGINS = Path("/usr/lib/cni")
BRIDGE = "cni7"
PATIENCE = 300.0
IDS = ContainerIds("ours-")
LOST, STAYS, ALIVE = "ours-lost", "ours-stays", "ours-alive"


@dataclass
class Site:
    """A node with attachments that Debian's plugins made; `known` is what a sweeper is told."""

    node: Node
    folder: Path
    containers: set[str] = field(default_factory=set)
    addresses: set[str] = field(default_factory=set)
    ports: set[str] = field(default_factory=set)
    now: float = 1000.0

    @property
    def places(self) -> Places:
        subnets = (ip_network("10.77.0.0/24"), ip_network("fd77::/64"))
        return Places("agents", BRIDGE, subnets, self.folder / "data" / "agents", Cache(self.folder), IDS)

    def sweeper(self) -> Sweeper:
        return Sweeper(self.places, self.known, patience=PATIENCE, launcher=self.node.launcher, clock=lambda: self.now)

    def known(self) -> Known:
        return Known(frozenset(self.containers), frozenset(self.addresses), frozenset(self.ports))

    def attach(self, container: str, host_port: int, network: str = "agents") -> None:
        """ADD by bridge with ipMasq, portmap and firewall, and the result in the cache; known from then on."""
        space = self.node.space(container)
        self.node._add(space)
        result: object = None
        for plugin in self._plugins(host_port):
            config = {"cniVersion": "1.0.0", "name": network, **plugin, "prevResult": result}
            made = subprocess.run(
                [*self.node.launcher, str(PLUGINS / str(plugin["type"]))],
                input=json.dumps({key: value for key, value in config.items() if value is not None}),
                env={
                    **os.environ,
                    "CNI_COMMAND": "ADD",
                    "CNI_CONTAINERID": container,
                    "CNI_NETNS": f"/run/netns/{space}",
                    "CNI_IFNAME": "eth0",
                    "CNI_PATH": str(PLUGINS),
                },
                capture_output=True,
                text=True,
                check=True,
                timeout=30,
            ).stdout
            result = json.loads(made)
        assert isinstance(result, dict)
        self.containers.add(container)
        self.addresses |= {found["address"].split("/")[0] for found in result["ips"]}
        self.ports.add(result["interfaces"][1]["name"])
        configured = json.dumps({"cniVersion": "1.0.0", "name": network, "plugins": []}).encode()
        answered = json.dumps(result).encode()
        self.places.cache.write(
            Record(network, container, "eth0", f"/run/netns/{space}", configured, (), {}, answered, complete=True)
        )

    def _plugins(self, host_port: int) -> list[dict[str, object]]:
        ranges = [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]
        ipam = {"type": "host-local", "dataDir": str(self.folder / "data"), "ranges": ranges}
        mapping = {"hostPort": host_port, "containerPort": 80, "protocol": "tcp"}
        return [
            {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": True, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": True}, "runtimeConfig": {"portMappings": [mapping]}},
            {"type": "firewall"},
        ]

    def lose(self, container: str) -> None:
        """The runtime and its network namespace go, and nobody calls DEL."""
        subprocess.run(["ip", "netns", "delete", self.node.space(container)], check=True, timeout=30)
        self.containers.discard(container)
        taken = {found.address for found in leftovers.reserved(self.places.addresses) if found.container == container}
        self.addresses -= taken

    async def sweep_twice(self, sweeper: Sweeper) -> Swept:
        first = await sweeper.sweep()
        assert (first.removed, first.failures) == ([], [])
        self.now += PATIENCE
        return await sweeper.sweep()

    def traces(self) -> str:
        """Everything that could bear a container's name or address."""
        rules = "".join(self.node.run(f"{program}-save") for program in ("iptables", "ip6tables"))
        files = [path for part in ("data", "results") for path in (self.folder / part).rglob("*")]
        return rules + "".join(f"{path.name} {path.read_text()}\n" for path in files if path.is_file())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    node = Node()
    try:
        node.start()
        yield Site(node, tmp_path)
    finally:
        node.remove()


async def test_nothing_of_a_lost_runtime_is_left_and_nothing_of_others_is_touched(site: Site) -> None:
    site.attach(STAYS, 7001)
    site.attach("ours-elsewhere", 7002, network="somebody")
    site.attach("a-pod", 7004)
    site.places.cache.remove("agents", "a-pod", "eth0")
    site.containers -= {"ours-elsewhere", "a-pod"}
    site.addresses -= {
        found.address for found in leftovers.reserved(site.places.addresses) if found.container == "a-pod"
    }
    before = site.traces()
    site.attach(LOST, 7003)
    address = max(found.address for found in leftovers.reserved(site.places.addresses) if "." in found.address)
    site.lose(LOST)
    assert LOST in site.traces()
    swept = await site.sweep_twice(site.sweeper())
    assert swept.failures == []
    assert {kind: len([one for one in swept.removed if one.kind is kind]) for kind in LeftoverKind} == {
        LeftoverKind.ADDRESS: 2,
        LeftoverKind.RESULT: 1,
        LeftoverKind.RULES: 4,
        LeftoverKind.LINK: 0,
    }
    after = site.traces()
    assert LOST not in after
    assert f"{address}/32" not in after
    assert _without_noise(after) == _without_noise(before)
    assert (await site.sweeper().sweep()).suspected == []


def _without_noise(traces: str) -> list[str]:
    """Not the times at which rules were listed, nor host-local's memory of the last address."""
    return sorted(line for line in traces.splitlines() if not line.startswith(("#", "last_reserved", ":")))


async def test_nothing_is_removed_before_the_patience_is_over(site: Site) -> None:
    site.attach(LOST, 7001)
    site.lose(LOST)
    sweeper = site.sweeper()
    before = _without_noise(site.traces())
    for _ in range(3):
        swept = await sweeper.sweep()
        assert swept.removed == []
        assert swept.suspected
        site.now += PATIENCE / 4
    assert _without_noise(site.traces()) == before


async def test_a_runtime_that_came_back_keeps_its_things(site: Site) -> None:
    site.attach(LOST, 7001)
    held = set(site.addresses)
    site.lose(LOST)
    sweeper = site.sweeper()
    await sweeper.sweep()
    site.containers.add(LOST)
    site.addresses |= held
    site.now += PATIENCE
    assert (await sweeper.sweep()).removed == []
    site.containers.discard(LOST)
    site.addresses.clear()
    site.now += PATIENCE
    assert (await sweeper.sweep()).removed == []  # a sighting that was interrupted begins anew


async def test_an_owner_that_is_back_between_the_look_and_the_removal_keeps_everything(site: Site) -> None:
    site.attach(LOST, 7001)
    site.lose(LOST)
    asked, in_one_look = 0, 1000

    def known() -> Known:
        """Known again after each kind of leftover was looked for in the second sweep."""
        nonlocal asked
        asked += 1
        back = asked > 2 * in_one_look
        return Known(
            frozenset({LOST} if back else ()), frozenset({"10.77.0.2", "fd77::2"} if back else ()), frozenset()
        )

    sweeper = Sweeper(site.places, known, patience=0, launcher=site.node.launcher, clock=lambda: site.now)
    assert (await sweeper.sweep()).removed == []
    in_one_look = asked
    site.now += 1
    before = _without_noise(site.traces())
    assert (await sweeper.sweep()).removed == []
    assert asked > 2 * in_one_look
    assert _without_noise(site.traces()) == before


async def test_an_address_file_that_is_another_s_by_now_stays(site: Site) -> None:
    site.attach(LOST, 7001)
    (one, *_) = leftovers.reserved(site.places.addresses)
    one.path.write_text("heir\r\neth0")
    assert not leftovers.release(one)
    assert one.path.exists()
    assert not leftovers.release(leftovers.ReservedAddress(one.path.parent / "10.77.0.200", LOST, "eth0"))


async def test_a_working_plugin_holds_sweeps_off_one_address_and_nothing_else(site: Site) -> None:
    site.attach(LOST, 7001)
    site.lose(LOST)
    with (site.places.addresses / "lock").open("r") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        swept = await site.sweep_twice(sweeper := site.sweeper())
        assert len(swept.failures) == 2
        assert {one.kind for one in swept.removed} == {LeftoverKind.RULES, LeftoverKind.RESULT}
    site.now += 1
    assert {one.kind for one in (await sweeper.sweep()).removed} == {LeftoverKind.ADDRESS}


async def test_errors_of_one_kind_do_not_stop_the_others(site: Site) -> None:
    site.attach(LOST, 7001)
    site.lose(LOST)
    broken = site.folder / "results"
    for path in broken.iterdir():
        path.unlink()
    broken.rmdir()
    broken.write_text("")
    sweeper = site.sweeper()
    first = await sweeper.sweep()
    site.now += PATIENCE
    second = await sweeper.sweep()
    assert [failure.split(":")[0] for failure in first.failures] == ["results"]
    assert {one.kind for one in second.removed} == {LeftoverKind.ADDRESS, LeftoverKind.RULES}


async def test_unreadable_results_and_living_links_are_reported(site: Site) -> None:
    site.attach(ALIVE, 7001)
    (port,) = site.ports
    site.ports.clear()
    (site.folder / "results" / "agents-x-eth0").write_text("half a fi")
    (site.folder / "results" / "agents2-x-eth0").write_text("half a fi")
    swept = await site.sweep_twice(site.sweeper())
    assert {(one.kind, one.what) for one in swept.left_alone} == {
        (LeftoverKind.RESULT, "agents-x-eth0"),
        (LeftoverKind.LINK, port),
    }
    assert swept.removed == []


async def test_a_half_made_link_is_removed(site: Site) -> None:
    site.attach(ALIVE, 7001)
    site.node.batch(
        site.node.name,
        "link add vethcafe0123 type veth peer name half1",
        f"link set vethcafe0123 master {BRIDGE}",
        "link add uplink0 type veth peer name uplink1",
        f"link set uplink0 master {BRIDGE}",
        "link add other9 type ifb",
        f"link set other9 master {BRIDGE}",
    )
    swept = await site.sweep_twice(site.sweeper())
    assert [(one.kind, one.what) for one in swept.removed] == [(LeftoverKind.LINK, "vethcafe0123")]
    assert [one.what for one in swept.left_alone] == ["uplink0"], "somebody made it by hand"
    found = await bridge.look(BRIDGE, site.node.launcher)
    assert found is not None
    assert {port.name for port in found.ports} == {*site.ports, "other9", "uplink0"}


async def test_a_node_without_anything_has_nothing_to_sweep(site: Site) -> None:
    swept = await site.sweep_twice(site.sweeper())
    assert swept == Swept()
