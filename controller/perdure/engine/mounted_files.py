"""The files that every container finds in /etc and that are not its own: resolv.conf, hosts, hostname.

Written by engines before a container is made, into one folder per runtime below the state folder; mounted read-only.
Formats: resolv.conf(5), hosts(5), hostname(5).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from perdure.api.names import RuntimeRef, Uid
from perdure.api.runtime import Dns, HostAlias, RuntimeSpec
from perdure.engine.oci.builder import MountedFiles

_LOOPBACK = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::\tip6-localnet\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)


def resolv_conf(dns: Dns | None, node: str) -> str:
    """The node's file, or what the spec says instead of it."""
    if dns is None or not (dns.nameservers or dns.searches or dns.options):
        return node
    lines = [f"nameserver {server}" for server in dns.nameservers]
    if dns.searches:
        lines.append(f"search {' '.join(dns.searches)}")
    if dns.options:
        lines.append(f"options {' '.join(dns.options)}")
    if not dns.nameservers:
        lines = [line for line in node.splitlines() if line.split()[:1] == ["nameserver"]] + lines
    return "\n".join(lines) + "\n"


def hosts(hostname: str, aliases: Sequence[HostAlias]) -> str:
    """Loopback, the container's own name, and the aliases of the spec."""
    lines = [f"127.0.1.1\t{hostname}"]
    lines += [f"{alias.ip}\t{' '.join(alias.hostnames)}" for alias in aliases]
    return _LOOPBACK + "\n".join(lines) + "\n"


class MountedFileStore:
    """Folders `<state_dir>/runtimes/<uid>`. Blocking: call it in a thread."""

    def __init__(self, state_dir: Path, node_resolv_conf: Path) -> None:
        self._base = state_dir / "runtimes"
        self._node_resolv_conf = node_resolv_conf

    def write(self, ref: RuntimeRef, spec: RuntimeSpec) -> MountedFiles:
        """Write all three; each is there whole or as it was. Raises `OSError`."""
        folder = self._base / ref.uid
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        try:
            node = self._node_resolv_conf.read_text()
        except FileNotFoundError:
            node = ""
        contents = {
            "resolv.conf": resolv_conf(spec.network.dns, node),
            "hosts": hosts(ref.name, spec.host_aliases),
            "hostname": f"{ref.name}\n",
        }
        for name, content in contents.items():
            temporary = folder / f".{name}"
            temporary.write_text(content)
            os.chmod(temporary, 0o644)
            temporary.rename(folder / name)
        return MountedFiles(resolv_conf=folder / "resolv.conf", hosts=folder / "hosts", hostname=folder / "hostname")

    def remove(self, uid: Uid) -> None:
        """Remove a runtime's folder; not there: nothing."""
        try:
            shutil.rmtree(self._base / uid)
        except FileNotFoundError:
            return
