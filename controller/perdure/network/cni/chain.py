"""The plugins of one network, run one after another for one attachment. Keeps nothing: `client` holds the records."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from perdure.network.cni import results
from perdure.network.cni.cache import Record
from perdure.network.cni.configuration import Network, Plugin
from perdure.network.cni.documents import Document, Malformed, decode_document, encode, raw
from perdure.network.cni.error_classes import ErrorClass
from perdure.network.cni.errors import Command, Execution, PluginError, PluginFault
from perdure.network.cni.plugin import Runner
from perdure.network.cni.results import Result
from perdure.network.cni.retries import classify

CANNOT_HAVE_RUN = frozenset(
    {
        ErrorClass.PLUGIN_MISSING,
        ErrorClass.PLUGIN_NOT_EXECUTABLE,
        ErrorClass.INCOMPATIBLE_VERSION,
        ErrorClass.UNSUPPORTED_FIELD,
        ErrorClass.DECODING_FAILURE,
        ErrorClass.INVALID_CONFIGURATION,
    }
)
"""What fails a DEL as it failed the ADD: with this configuration the plugin has set nothing up, and whoever corrects that
is not to be held up by the one that was recorded."""


def request(network: Network, plugin: Plugin) -> Document:
    """A plugin's own configuration as every operation passes it (specification, deriving request configuration)."""
    document = decode_document(plugin.document)
    document.pop("capabilities", None)
    return {**document, "name": raw(network.name), "cniVersion": raw(network.cni_version)}


@dataclass(frozen=True, slots=True)
class Chain:
    """`plugins`, of `network`, in the order of an ADD; `record`: the attachment, with what was asked for it."""

    runner: Runner
    network: Network
    plugins: tuple[Plugin, ...]
    record: Record

    async def add(self, plugin: Plugin, previous: bytes | None) -> Result:
        """One plugin's ADD, after one whose result was `previous`. Raises `PluginError`."""
        execution = self._execution(Command.ADD, plugin)
        answer = await self.runner.run(execution, self._document(plugin, previous))
        try:
            return results.parse(answer, self.network.cni_version)
        except Malformed as error:
            said = answer[:200].decode(errors="replace")
            text = f"what it wrote is no result: {error}: {said!r}" if answer else "it wrote no result"
            raise PluginError(execution, PluginFault.GARBAGE, text) from error

    async def check(self, previous: bytes) -> None:
        """Raises the first `PluginError` that is about the attachment: what is said of its bridge keeps none of the further
        plugins from being asked."""
        for plugin in self.plugins:
            try:
                await self.runner.run(self._execution(Command.CHECK, plugin), self._document(plugin, previous))
            except PluginError as error:
                if classify(error).kind is not ErrorClass.BRIDGE_CHANGED:
                    raise

    async def delete(self, previous: bytes | None) -> PluginError | None:
        """DEL of every plugin, the last first, whichever fails; returns the first error.

        `previous` is left out for networks before 0.4.0, which have no such member for DEL.
        """
        given = previous if self.network.at_least("0.4.0") else None
        errors = [await self._delete_one(plugin, given) for plugin in reversed(self.plugins)]
        return next((error for error in errors if error is not None), None)

    async def _delete_one(self, plugin: Plugin, previous: bytes | None) -> PluginError | None:
        try:
            await self.runner.run(self._execution(Command.DEL, plugin), self._document(plugin, previous))
        except PluginError as error:
            kind = classify(error).kind
            if kind is ErrorClass.CONTAINER_UNKNOWN:
                return None  # the specification: nothing is left to clean up
            if kind in CANNOT_HAVE_RUN and not self.record.complete:
                return None
            if kind is ErrorClass.NETNS_LOST and self.record.netns:
                # What is under the path is no network namespace, as after a reboot; plugins ask for no path then.
                return await replace(self, record=replace(self.record, netns=""))._delete_one(plugin, previous)
            return error
        return None

    def _execution(self, command: Command, plugin: Plugin) -> Execution:
        return Execution(
            plugin=plugin.type,
            command=command,
            network=self.network.name,
            container_id=self.record.container_id,
            netns=self.record.netns,
            ifname=self.record.ifname,
            args=";".join(f"{key}={value}" for key, value in self.record.cni_args),
        )

    def _document(self, plugin: Plugin, previous: bytes | None) -> bytes:
        document = request(self.network, plugin)
        asked = {key: value for key, value in self.record.capabilities.items() if key in plugin.capabilities}
        if asked:
            document["runtimeConfig"] = raw(asked)
        if previous is not None:
            document["prevResult"] = msgspec.Raw(previous)
        return encode(document)
