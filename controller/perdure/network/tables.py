"""The nftables of one installation on this node: a firewall for each bridge, and none for bridges that nobody is on any more.

Called by `isolation`. The installation is in the names, so that what an earlier agent made is found without a record of it.
"""

from __future__ import annotations

import json
from collections.abc import Collection

import structlog

from perdure.api.names import InstallationId
from perdure.network.command import Launcher, run
from perdure.network.firewall import Firewall
from perdure.network.rules import NetworkRules, table_prefix
from perdure.reconcile.ports.errors import SandboxFailed

log = structlog.get_logger(__name__)


class Tables:
    """Raises `SandboxFailed`, mostly as `CommandFailed`."""

    def __init__(self, installation: InstallationId, launcher: Launcher = ()) -> None:
        self._prefix = table_prefix(installation)
        self._launcher = launcher

    def firewall(self, rules: NetworkRules) -> Firewall:
        return Firewall(rules, self._launcher)

    async def keep(self, names: Collection[str]) -> None:
        """Remove the installation's tables but those of these names."""
        printed = await run("listing the firewalls", "nft", "-j", "list", "tables", launcher=self._launcher)
        try:
            listed = [entry["table"] for entry in json.loads(printed)["nftables"] if "table" in entry]
            others = [(one["family"], one["name"]) for one in listed if self._is_left(one["name"], names)]
        except (ValueError, KeyError, TypeError) as error:
            raise SandboxFailed(f"listing the firewalls: nft printed what is not its JSON: {error!r}") from error
        if not others:
            return
        text = "".join(f"add table {family} {name}\ndelete table {family} {name}\n" for family, name in others)
        await run(
            "removing the firewalls of bridges that are not used", "nft", "-f", "-", launcher=self._launcher, feed=text
        )
        log.info("firewalls_removed", tables=sorted({name for _, name in others}))

    def _is_left(self, name: str, kept: Collection[str]) -> bool:
        return name.startswith(self._prefix) and name not in kept
