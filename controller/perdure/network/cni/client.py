"""The operations of the Container Network Interface on whole networks (specification, section 3), as libcni does them.

Called by the network's provider, which sees to it that no two operations on one attachment run at the same time. Of what is
asked for, nothing is logged: arguments may hold secrets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from perdure.network.cni.attachment import Attachment, asked_either_way
from perdure.network.cni.cache import Cache, Damaged, Record
from perdure.network.cni.chain import Chain, request
from perdure.network.cni.configuration import Network, parse
from perdure.network.cni.documents import Malformed, decode, encode, raw
from perdure.network.cni.error_classes import Action
from perdure.network.cni.errors import (
    CniError,
    Command,
    ConfigurationError,
    Execution,
    NotCached,
    PluginError,
    PluginFault,
)
from perdure.network.cni.plugin import Runner
from perdure.network.cni.results import Result
from perdure.network.cni.retries import classify


class ValidAttachment(msgspec.Struct, frozen=True, order=True):
    """An attachment that is still wanted, as GC names it."""

    container_id: str = msgspec.field(name="containerID")
    ifname: str


class _VersionAnswer(msgspec.Struct, rename="camel"):
    supported_versions: tuple[str, ...]


class CniClient:
    """`plugin_dirs`: where plugins are, in order; `cache_dir`: a folder of this client's own; `deadline_seconds`: per plugin;
    `launcher`: see `Runner`.

    Operations raise `PluginError` for what a plugin did not do, `CacheUnusable`, and `InvalidAttachment`. One that is
    cancelled kills the plugin that runs, and leaves the record that a DEL needs.
    """

    def __init__(
        self, plugin_dirs: Sequence[Path], cache_dir: Path, deadline_seconds: float, launcher: tuple[str, ...] = ()
    ) -> None:
        self._runner = Runner(tuple(plugin_dirs), deadline_seconds, launcher)
        self._cache = Cache(cache_dir)

    async def add(self, network: Network, attachment: Attachment) -> Result:
        """Attach. A failure leaves what it leaves: a DEL has to follow before the next ADD.

        The record is written before the first plugin runs, and after each that changes the result, so that a DEL knows
        as much as any plugin that may have set something up, whenever this process dies.
        """
        attachment.validate()
        record = _asked(network, attachment)
        await asyncio.to_thread(self._cache.write, record)
        chain = Chain(self._runner, network, network.plugins, record)
        result = await chain.add(network.plugins[0], None)
        for plugin in network.plugins[1:]:
            if result.document != record.result:
                record = replace(record, result=result.document)
                await asyncio.to_thread(self._cache.write, record)
            result = await chain.add(plugin, result.document)
        await asyncio.to_thread(self._cache.write, replace(record, result=result.document, complete=True))
        return result

    async def configured(self, network_name: str, attachment: Attachment) -> Network:
        """The configuration that it was added with. Raises `NotCached` without a complete ADD's record, `CacheUnusable`."""
        attachment.validate()
        return (await self._attached(network_name, attachment))[0].network

    async def check(self, network_name: str, attachment: Attachment) -> bool:
        """Whether the plugins confirm the attachment, by the configuration that it was added with: False where that allows
        no CHECK.

        Raises `PluginError` for what is not as it should be, and `NotCached` without the record of a complete ADD.
        """
        attachment.validate()
        chain, result = await self._attached(network_name, attachment)
        if not chain.network.at_least("0.4.0") or chain.network.disable_check:
            return False
        await chain.check(result)
        return True

    async def delete(self, network: Network, attachment: Attachment) -> None:
        """Detach, with the configuration and arguments of the ADD where there is a record of them.

        Every plugin is asked, the last first; then the first error is raised, and the record stays for the next try.
        Nothing attached is a success, and so is a network namespace that is gone.
        """
        attachment.validate()
        found = await self._read(network.name, attachment)
        record = found if isinstance(found, Record) else _asked(network, attachment)
        await self._delete(_configured(record, network), replace(record, netns=attachment.netns))

    async def delete_cached(self, record: Record) -> None:
        """Detach what `cached` listed, whose network may no longer be configured. Raises `ConfigurationError` as well."""
        await self._delete(parse(record.network, f"the cached configuration of {record.container_id}"), record)

    async def repair(self, network_name: str, attachment: Attachment) -> None:
        """Put rules, limits and settings of an attachment back, or make them what is asked for now, while its interface and
        connections stay.

        By the configuration of the ADD: DEL, with what was asked for before, and ADD of the plugins after the first:
        portmap, firewall, bandwidth, tuning. For that moment published ports answer nobody new. Raises the first error of
        the ADDs, else of the DELs; `NotCached` without a complete ADD's record. Whenever this process dies, the record names
        all that a DEL has to take back: what was asked for until the DELs have succeeded, what is asked for before the ADDs.
        """
        attachment.validate()
        chain, result = await self._attached(network_name, attachment)
        further = replace(chain, plugins=chain.plugins[1:])
        failure = await further.delete(result)
        if failure is not None and classify(failure).action is Action.DELETE_AGAIN:
            failure = await further.delete(result)
        wanted = attachment.capabilities.document()
        former = chain.record.capabilities
        record = replace(chain.record, capabilities=wanted if failure is None else asked_either_way(former, wanted))
        if record.capabilities != former:
            await asyncio.to_thread(self._cache.write, record)
        further = replace(further, record=replace(record, capabilities=wanted))
        repaired = result
        for plugin in further.plugins:
            repaired = (await further.add(plugin, repaired)).document
        if repaired != result:
            await asyncio.to_thread(self._cache.write, replace(record, result=repaired))
        if failure is not None:
            raise failure

    async def status(self, network: Network) -> None:
        """Raises the first error of a plugin that cannot serve an ADD. Networks before 1.1.0 are not asked."""
        if not network.at_least("1.1.0"):
            return
        for plugin in network.plugins:
            execution = Execution(plugin.type, Command.STATUS, network.name)
            await self._runner.run(execution, encode(request(network, plugin)))

    async def gc(self, network: Network, valid: Collection[ValidAttachment]) -> None:
        """Detach what is cached of `network` but not in `valid`, then let plugins of networks from 1.1.0 on collect theirs.

        An attachment that is missing in `valid` loses its network. The reference plugins up to 1.9.1 collect nothing.
        All is tried, then the first error raised. With `disableGC` in the configuration nothing is done.
        """
        if network.disable_gc:
            return
        wanted = raw(sorted(set(valid)))
        failures: list[CniError] = []
        for record in await self.cached():
            if isinstance(record, Damaged) or record.network_name != network.name:
                continue
            if ValidAttachment(record.container_id, record.ifname) not in valid:
                failures += await _failure(self._delete(_configured(record, network), record))
        for plugin in network.plugins if network.at_least("1.1.0") else ():
            # The specification has the first name; libcni sends the second as well, which older plugins read (cni#1101).
            collect = {"cni.dev/valid-attachments": wanted, "cni.dev/attachments": wanted}
            document = encode({**request(network, plugin), **collect})
            failures += await _failure(self._runner.run(Execution(plugin.type, Command.GC, network.name), document))
        if failures:
            raise failures[0]

    async def version(self, plugin_type: str) -> tuple[str, ...]:
        """The versions that a plugin speaks."""
        execution = Execution(plugin_type, Command.VERSION, "none")
        answer = await self._runner.run(execution, encode({"cniVersion": raw("1.1.0")}))
        try:
            return decode(answer, _VersionAnswer).supported_versions
        except Malformed as error:
            raise PluginError(execution, PluginFault.GARBAGE, f"what it wrote is no version object: {error}") from error

    async def cached(self) -> tuple[Record | Damaged, ...]:
        """What is attached, or half attached, according to the records."""
        return await asyncio.to_thread(self._cache.records)

    async def cached_of(self, container_id: str) -> tuple[Record | Damaged, ...]:
        """The same of one container, without reading what is cached of others."""
        return await asyncio.to_thread(self._cache.records, container_id)

    async def _read(self, network_name: str, attachment: Attachment) -> Record | Damaged | None:
        return await asyncio.to_thread(self._cache.read, network_name, attachment.container_id, attachment.ifname)

    async def _attached(self, network_name: str, attachment: Attachment) -> tuple[Chain, bytes]:
        """The chain as it was added, and its result. Raises `NotCached`."""
        found = await self._read(network_name, attachment)
        if not isinstance(found, Record) or found.result is None or not found.complete:
            why = (
                f"{found.file} is damaged: {found.problem}"
                if isinstance(found, Damaged)
                else "it has not been attached"
            )
            raise NotCached(f"no result of {attachment.container_id} in network {network_name}: {why}; attach it anew")
        try:
            configured = parse(found.network, "the cached configuration")
        except ConfigurationError as error:
            raise NotCached(f"what {attachment.container_id} was attached with cannot be read: {error}") from error
        return Chain(self._runner, configured, configured.plugins, replace(found, netns=attachment.netns)), found.result

    async def _delete(self, network: Network, record: Record) -> None:
        failure = await Chain(self._runner, network, network.plugins, record).delete(record.result)
        if failure is not None:
            raise failure
        await asyncio.to_thread(self._cache.remove, record.network_name, record.container_id, record.ifname)


def _asked(network: Network, attachment: Attachment) -> Record:
    return Record(
        network_name=network.name,
        container_id=attachment.container_id,
        ifname=attachment.ifname,
        netns=attachment.netns,
        network=network.document,
        cni_args=attachment.cni_args,
        capabilities=attachment.capabilities.document(),
    )


def _configured(record: Record, network: Network) -> Network:
    """The configuration of the ADD, so that an edited file does not break the DEL; `network` where that is unreadable."""
    try:
        return parse(record.network, "the cached configuration")
    except ConfigurationError:
        return network


async def _failure(operation: Awaitable[object]) -> list[CniError]:
    try:
        await operation
    except CniError as error:
        return [error]
    return []
