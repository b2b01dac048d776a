"""An environment's own network: a CNI configuration with a bridge, a subnet and folders that no other environment has.

Called by ``rig.environment``: ``write`` before Perdure starts, ``remove`` after it and every container ended.
"""

import ipaddress
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rig.progress import CommandError, run

SUBNETS = ipaddress.ip_network("10.128.0.0/9")
"""Where environments' subnets are cut from; the first /24 from a point of the environment's own that no route has."""
PLUGIN_DIRECTORIES = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
"""As ``--cni-bin-dir`` defaults to."""
SHARED_CHAINS = ("CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK")
"""Chains that portmap makes once for all networks and never removes."""
COMMAND_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Network:
    """``identifier``: eight hex digits of the environment. ``dual_stack``: IPv6 addresses beside those of IPv4."""

    directory: Path
    run_directory: Path
    identifier: str
    dual_stack: bool = False

    @property
    def name(self) -> str:
        """Of the network, as plugins and rules know it."""
        return f"perdure-{self.identifier}"

    @property
    def bridge(self) -> str:
        """Name of the link; at most 15 characters."""
        return f"pd{self.identifier}"

    @property
    def configuration_directory(self) -> Path:
        """For ``--cni-conf-dir``."""
        return self.directory / "net.d"

    def write(self) -> None:
        """Write the configuration unless it is there: an environment keeps its subnet."""
        file = self.configuration_directory / "10-perdure.conflist"
        if file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        subnets, routes = [str(self._free_subnet())], ["0.0.0.0/0"]
        if self.dual_stack:
            subnets.append(f"fd00:{self.identifier[:4]}:{self.identifier[4:]}::/64")
            routes.append("::/0")
        ipam = {
            "type": "host-local",
            "dataDir": str(self.run_directory / "ipam"),
            "ranges": [[{"subnet": subnet}] for subnet in subnets],
            "routes": [{"dst": route} for route in routes],
        }
        bridge = {
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": True,
            "hairpinMode": True,
            "ipam": ipam,
        }
        portmap = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
        configuration = {"cniVersion": "1.0.0", "name": self.name, "plugins": [bridge, portmap]}
        temporary = file.with_suffix(".new")
        temporary.write_text(json.dumps(configuration, indent=2) + "\n")
        temporary.rename(file)

    def remove(self) -> None:
        """Take away links and rules; the folders go with the environment's."""
        if Path("/sys/class/net", self.bridge).exists():
            for port in Path("/sys/class/net", self.bridge, "brif").glob("*"):
                _run("ip", "link", "delete", port.name)
            _run("ip", "link", "delete", self.bridge)
        for family, table in list(self._tables()):
            _run("nft", "delete", "table", family, table)
        for command in ("iptables", "ip6tables"):
            _forget_rules(command, f'name: \\"{self.name}\\"')

    def things_of(self, uid: str) -> list[str]:
        """Addresses and rules of one runtime, as ``host-local`` and the kernel have them: plugins know it by an id that ends
        in its uid."""
        addresses = [
            f"address {file.name}"
            for file in (self.run_directory / "ipam" / self.name).glob("[0-9]*")
            if "".join(file.read_text().splitlines()[:1]).endswith(uid)
        ]
        return addresses + [
            f"rule {line}"
            for command in ("iptables", "ip6tables")
            for line in _run(f"{command}-save", "-t", "nat").splitlines()
            if uid in line
        ]

    def forget_rules(self, uid: str) -> None:
        """Remove the NAT rules of one runtime, as whoever flushes tables does."""
        for command in ("iptables", "ip6tables"):
            _forget_rules(command, f'{uid}\\"')

    def _free_subnet(self) -> ipaddress.IPv4Network:
        routed = [
            ipaddress.ip_network(route["dst"] if "/" in route["dst"] else f"{route['dst']}/32")
            for route in json.loads(_run("ip", "-4", "-j", "route", "show", "table", "all"))
            if route["dst"] != "default" and ":" not in route["dst"]
        ]
        count = 2 ** (24 - SUBNETS.prefixlen)
        start = int(self.identifier, 16) % count
        for step in range(count):
            address = int(SUBNETS.network_address) + ((start + step) % count) * 256
            subnet = ipaddress.IPv4Network((address, 24))
            if not any(subnet.overlaps(other) for other in routed if isinstance(other, ipaddress.IPv4Network)):
                return subnet
        raise RuntimeError(f"no subnet of {SUBNETS} is free on this machine; look at: ip route")

    def _tables(self) -> Iterator[tuple[str, str]]:
        """Tables of Perdure's firewall that are about this bridge, and their twins for bridged traffic."""
        if shutil.which("nft") is None:
            return
        listed = json.loads(_run("nft", "-j", "list", "tables"))["nftables"]
        ours = {entry["table"]["name"] for entry in listed if "table" in entry and entry["table"]["family"] == "inet"}
        for name in sorted(table for table in ours if table.startswith("perdure-")):
            if f'"{self.bridge}"' in _table(name):
                for entry in listed:
                    if "table" in entry and entry["table"]["name"] == name:
                        yield entry["table"]["family"], name


def _table(name: str) -> str:
    """Its rules; nothing where it went after it was listed: then it was another network's."""
    try:
        return run(["nft", "list", "table", "inet", name], timeout=COMMAND_SECONDS)
    except CommandError as error:
        if "No such file or directory" in str(error):
            return ""
        raise RuntimeError(f"the environment's network: {error}") from error


def _forget_rules(command: str, comment: str) -> None:
    """Remove the NAT rules with ``comment`` and the chains that they lead to."""
    lines = _run(f"{command}-save", "-t", "nat").splitlines()
    for line in lines:
        if comment in line and line.startswith("-A "):
            _run(command, "-t", "nat", *_words(line.replace("-A ", "-D ", 1)))
    jumps = (re.search(r"-j (CNI?-[0-9A-Za-z-]+)", line) for line in lines if comment in line)
    chains = {match[1] for match in jumps if match is not None}
    for chain in sorted(chains - set(SHARED_CHAINS)):
        _run(command, "-t", "nat", "-F", chain)
        _run(command, "-t", "nat", "-X", chain)


def plugin_directory() -> Path:
    """The one folder for an engine that can be told no more: Debian's, unless an administrator put plugins before it."""
    return next((folder for folder in PLUGIN_DIRECTORIES if (folder / "bridge").exists()), PLUGIN_DIRECTORIES[-1])


def forget_shared_chains() -> None:
    """Remove what portmap makes once for all networks, unless a network still uses it: for when nobody else is at work."""
    for command in ("iptables", "ip6tables"):
        lines = _run(f"{command}-save", "-t", "nat").splitlines()
        if any(line.startswith((":CNI-DN-", ":CNI-SN-", "-A CNI-HOSTPORT-DNAT ")) for line in lines):
            continue
        shared = [chain for chain in SHARED_CHAINS if any(line.startswith(f":{chain} ") for line in lines)]
        for line in lines:
            if line.startswith("-A ") and any(line.endswith(f"-j {chain}") for chain in shared):
                _run(command, "-t", "nat", *_words(line.replace("-A ", "-D ", 1)))
        for flag in ("-F", "-X"):
            for chain in shared:
                _run(command, "-t", "nat", flag, chain)


def _words(line: str) -> list[str]:
    """A line of iptables-save(8) as arguments: quoted comments may hold spaces and escaped quotes."""
    return [
        re.sub(r"\\(.)", r"\1", quoted) if quoted else plain
        for quoted, plain in re.findall(r'"((?:\\.|[^"\\])*)"|(\S+)', line)
    ]


def _run(*command: str) -> str:
    try:
        return run(list(command), timeout=COMMAND_SECONDS)
    except CommandError as error:
        raise RuntimeError(f"the environment's network: {error}") from error
