"""The sandbox for `network.mode: cni`: a named network namespace, and in it what the node's CNI configuration says.

The namespace comes first and stays through restarts of the container, with its address. The network is brought in while
the engine makes the task, which joins the namespace by its name; whatever fails is classified once (`cni.retries`), and
undone before it is done again. Who is attached is kept in `attachments`, who may reach whom is `isolation`'s business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import structlog

from perdure.api.conditions import Reason
from perdure.api.names import RuntimeRef, Uid
from perdure.api.network import NetworkMode, NetworkPolicy
from perdure.network import listeners, netns
from perdure.network.attachments import Attached, Attachments
from perdure.network.bridged import bridged
from perdure.network.claims import Claims
from perdure.network.cni import configuration
from perdure.network.cni.attachment import Attachment, Capabilities, CapabilityDns, PortMapping
from perdure.network.cni.cache import Damaged, Record
from perdure.network.cni.client import CniClient
from perdure.network.cni.configuration import Network
from perdure.network.cni.error_classes import Action, Classified
from perdure.network.cni.errors import CniError, ConfigurationError, ConfigurationFault, NotCached
from perdure.network.cni.results import Result, addresses, default_routes
from perdure.network.cni.retries import classify
from perdure.network.container_ids import ContainerIds
from perdure.network.isolation import Isolation
from perdure.network.netns import NameState
from perdure.plan.certainty import Absent, Certain, Present, Unknown
from perdure.plan.world import OWN_NAMESPACE, HostPort, SandboxFacts
from perdure.reconcile.ports.errors import PortHeld, PortTaken, SandboxFailed
from perdure.reconcile.ports.sandbox import SandboxPlan

log = structlog.get_logger(__name__)

IFNAME = "eth0"
TRIES = 3
"""ADDs, or DELs, within one attempt: each time after what stood in its way was removed. What fails then backs off."""
_UNSETTLED = "a change of its ports has not ended"
_AGAIN = frozenset({Action.DELETE_THEN_ADD, Action.DELETE_AGAIN, Action.REPAIR_BRIDGE, Action.SWEEP_THEN_BACK_OFF})


@dataclass(frozen=True, slots=True)
class CniSettings:
    """Where the node's network is configured. `names`, the folder of namespaces, must not outlive a reboot."""

    configuration_dir: Path
    network: str | None
    """None: the first valid configuration of the folder, as the kubelet's engines choose."""
    names: Path
    ids: ContainerIds


Clear = Callable[[Action, Network], Awaitable[None]]
"""Does what an action of the table of errors asks for on the node as a whole: frees addresses, mends the bridge."""


class CniSandbox:
    """`perdure.reconcile.ports.sandbox.Sandbox`. No two calls for one runtime run at a time: the loop sees to that."""

    def __init__(
        self,
        settings: CniSettings,
        client: CniClient,
        attachments: Attachments,
        claims: Claims,
        isolation: Isolation,
        clear: Clear,
    ) -> None:
        self.settings = settings
        self._client = client
        self._attachments = attachments
        self._claims = claims
        self._isolation = isolation
        self._clear = clear
        self._warnings: tuple[str, ...] = ()

    async def is_configured(self) -> bool:
        """Whether runtimes that do not say otherwise get a network. A configuration that is there and wrong counts."""
        try:
            await self.network()
        except SandboxFailed as error:
            return error.reason is not Reason.NO_CNI_CONFIGURATION
        return True

    async def network(self) -> Network:
        """The node's network as configured now. Raises `SandboxFailed`."""
        try:
            loaded = await asyncio.to_thread(configuration.load, self.settings.configuration_dir, self.settings.network)
        except ConfigurationError as error:
            absent = error.fault in (ConfigurationFault.NO_CONFIGURATION, ConfigurationFault.NETWORK_NOT_FOUND)
            reason = Reason.NO_CNI_CONFIGURATION if absent else Reason.CNI_CONFIGURATION_INVALID
            raise SandboxFailed(str(error), reason=reason, of_node=True) from error
        if loaded.warnings != self._warnings:
            self._warnings = loaded.warnings
            for warning in loaded.warnings:
                log.warning(
                    "network_configuration", network=loaded.network.name, file=str(loaded.file), warning=warning
                )
        return loaded.network

    # ------------------------------------------------------------------------------------------ the port

    async def observe(self, ref: RuntimeRef) -> Certain[SandboxFacts]:
        path = self._path(ref.uid)
        try:
            found = await asyncio.to_thread(netns.state, path)
        except OSError as error:
            return Unknown(f"cannot look at the network namespace of {ref}: {error}")
        return Present(self._facts(ref)) if found is NameState.MOUNTED else Absent()

    async def create(self, plan: SandboxPlan) -> SandboxFacts:
        path = self._path(plan.ref.uid)
        try:
            if plan.pid is not None:
                await asyncio.to_thread(netns.adopt, path, plan.pid)
            else:
                # A new namespace holds nothing: what is attached of an older one is gone with it. Its address is another's
                # once it is detached.
                await self._isolation.expel(plan.ref.uid)
                await self._detach(plan.ref.uid)
                await asyncio.to_thread(netns.create, path)
        except OSError as error:
            raise SandboxFailed(
                f"cannot make the network namespace of {plan.ref}: {error}; the agent needs CAP_SYS_ADMIN and {path.parent}"
            ) from error
        return self._facts(plan.ref)

    async def ask_for_ports(self, plan: SandboxPlan) -> None:
        attached = self._attachments.get(plan.ref.uid)
        known = set(attached.ports) if attached is not None else set()
        for port in plan.ports:
            await self._forget_holder_without_record(plan.ref.uid, port)
        self._refuse_held(plan)
        for port in plan.ports:
            if port not in known and await self._is_taken(port):
                raise PortTaken(port.name, port.host_port, port.protocol)

    async def attach(self, plan: SandboxPlan) -> SandboxFacts:
        uid = plan.ref.uid
        attached, damage = self._attachments.get(uid), self._attachments.damages.get(uid)
        policy = plan.spec.network.policy or OWN_NAMESPACE
        if attached is None or (damage is not None and damage.interface):
            await self._add(plan, policy)
        elif damage is not None or attached.unsettled or attached.ports != plan.ports:
            await self._lead_in(plan, attached, policy)
        elif attached.policy != policy:
            await self._admit(msgspec.structs.replace(attached, policy=policy))
        return self._facts(plan.ref)

    async def remove(self, ref: RuntimeRef) -> None:
        await self.discard(ref.uid)

    async def discard(self, uid: Uid) -> None:
        """`remove` by uid alone, for what is left of a life that is on no record. Raises `SandboxFailed`."""
        try:
            await self._isolation.expel(uid)
            await self._detach(uid)
            await asyncio.to_thread(netns.remove, self._path(uid))
        except OSError as error:
            raise SandboxFailed(f"cannot remove the network namespace {self._path(uid)}: {error}") from error

    async def problem(self) -> SandboxFailed | None:
        try:
            network = await self.network()
            await self._client.status(network)
        except SandboxFailed as error:
            return None if error.reason is Reason.NO_CNI_CONFIGURATION and self.settings.network is None else error
        except CniError as error:
            verdict = classify(error)
            return None if verdict.action is Action.IGNORE else _failure(error, verdict)
        return None

    async def inventory(self) -> Sequence[Uid]:
        try:
            names = await asyncio.to_thread(netns.names, self.settings.names)
        except OSError as error:
            raise SandboxFailed(f"cannot list network namespaces in {self.settings.names}: {error}") from error
        return tuple(sorted({Uid(name) for name in names} | self._attachments.uids()))

    # ------------------------------------------------------------------------------------------ attaching

    async def _add(self, plan: SandboxPlan, policy: NetworkPolicy) -> None:
        network = await self.network()
        await self._isolation.use(network)
        self._refuse_unoffered(network, plan)
        await self.ask_for_ports(plan)
        attachment = self._attachment(plan)
        attached = await self._add_with_own_address(network, attachment, plan, policy)
        if not attached.addresses:
            await self._delete(network, attachment)
            raise SandboxFailed(
                f"network {network.name} gave {plan.ref} no address that others could reach; look at the ipam part of "
                f"its configuration in {self.settings.configuration_dir}",
                reason=Reason.NO_ADDRESS,
            )
        await self._admit(attached)

    async def _add_with_own_address(
        self, network: Network, attachment: Attachment, plan: SandboxPlan, policy: NetworkPolicy
    ) -> Attached:
        """A network of another name on the same subnet gives addresses of its own count, and some of them may be had by
        runtimes that were attached before: those are given back, and host-local goes on to the next."""
        for _ in range(len(self._attachments.uids()) + 1):
            result = await self._add_until_it_holds(network, attachment, plan)
            attached = _attached(plan, policy, network, result)
            had = {address for one in self._attachments.all() if one.ref != plan.ref for address in one.addresses}
            if had.isdisjoint(attached.addresses):
                return attached
            log.info("address_of_another", runtime=str(plan.ref), network=network.name, addresses=attached.addresses)
            await self._delete(network, attachment)
        raise SandboxFailed(
            f"network {network.name} gives {plan.ref} nothing but addresses that other runtimes of this node have, which "
            "were attached by an earlier configuration; give it a subnet of its own",
            reason=Reason.ADDRESS_POOL_EXHAUSTED,
        )

    async def _add_until_it_holds(self, network: Network, attachment: Attachment, plan: SandboxPlan) -> Result:
        """ADD; where the table of errors says so, after undoing what an earlier one left."""
        await self._undo(plan.ref.uid)
        for tries_left in reversed(range(TRIES)):
            try:
                self._claim(plan)
                return await self._client.add(network, attachment)
            except CniError as error:
                verdict = classify(error)
                log.info("network_add_failed", uid=attachment.container_id, kind=verdict.kind.value)
                try:
                    await self._delete(network, attachment)
                except SandboxFailed as undoing:
                    # The record stays, so the next attempt begins with the DEL; what is told is what came first.
                    raise _failure(error, verdict) from undoing
                if not tries_left or verdict.action not in _AGAIN:
                    raise _failure(error, verdict) from error
                await self._clear(verdict.action, network)
        raise AssertionError("the last try returns or raises")

    async def _lead_in(self, plan: SandboxPlan, attached: Attached, policy: NetworkPolicy) -> None:
        """Ports and rules anew, by the configuration that it was attached with; the interface, its address and whatever is
        connected stay."""
        attachment = self._attachment(plan)
        try:
            network = await self._client.configured(attached.network, attachment)
        except NotCached:
            await self._add(plan, policy)
            return
        except CniError as error:
            raise _failure(error, classify(error)) from error
        self._refuse_unoffered(network, plan)
        await self.ask_for_ports(plan)
        self._claim(plan)
        # Before anything is changed: whoever finds this after us repairs it, even if the change itself was taken back.
        await self._record(msgspec.structs.replace(attached, unsettled=True))
        try:
            await self._client.repair(attached.network, attachment)
        except CniError as error:
            raise _failure(error, classify(error)) from error
        await self._admit(msgspec.structs.replace(attached, policy=policy, ports=plan.ports, unsettled=False))

    async def _admit(self, attached: Attached) -> None:
        """The firewall before the record: what is on record is admitted whenever the agent starts."""
        await self._isolation.admit(attached)
        await self._record(attached)
        self._claims.settle(attached.ref.uid, attached.ports)

    async def _record(self, attached: Attached) -> None:
        try:
            await asyncio.to_thread(self._attachments.put, attached)
        except OSError as error:
            raise SandboxFailed(
                f"cannot record the network of {attached.ref} beside {self.settings.names}: {error}; make room there"
            ) from error

    def _claim(self, plan: SandboxPlan) -> None:
        """Ask and take without an await between: two that attach at the same time cannot both get a number."""
        self._refuse_held(plan)
        self._claims.add(plan.ref.uid, plan.ports)

    def _refuse_held(self, plan: SandboxPlan) -> None:
        for port in plan.ports:
            holder = self._claims.holder(plan.ref.uid, port)
            if holder is not None:
                attached = self._attachments.get(holder)
                named = str(attached.ref) if attached is not None else f"the runtime with uid {holder}"
                raise PortHeld(port.name, port.host_port, port.protocol, named)

    async def _forget_holder_without_record(self, uid: Uid, port: HostPort) -> None:
        """What an earlier agent left half attached may have been swept since."""
        holder = self._claims.holder(uid, port)
        if holder is None or not self._claims.is_recalled(holder) or self._attachments.get(holder) is not None:
            return
        if not await self._cached(self.settings.ids.id(holder)):
            self._claims.drop(holder)

    async def _is_taken(self, port: HostPort) -> bool:
        try:
            return await asyncio.to_thread(listeners.taken, port)
        except OSError as error:
            raise SandboxFailed(f"cannot see whether port {port.host_port} of the node is free: {error}") from error

    def _refuse_unoffered(self, network: Network, plan: SandboxPlan) -> None:
        if plan.ports and not network.offers("portMappings"):
            raise SandboxFailed(
                f"{plan.ref} asks for ports on the node, and no plugin of network {network.name} has the capability "
                "portMappings: add the portmap plugin to its configuration; what is attached already gets it when its network "
                "is made anew (desiredState Removed, then Running)",
                reason=Reason.CNI_CONFIGURATION_INVALID,
            )

    # ------------------------------------------------------------------------------------------ detaching

    async def _detach(self, uid: Uid) -> None:
        """Everything away, also where nothing but a part of it is left."""
        await self._undo(uid)
        self._claims.drop(uid)
        await asyncio.to_thread(self._attachments.remove, uid)

    async def _undo(self, uid: Uid) -> None:
        """DEL with what was recorded, tolerant and always, of whatever network it was."""
        for record in await self._cached(self.settings.ids.id(uid)):
            if isinstance(record, Record):
                await self._twice(partial(self._client.delete_cached, replace(record, netns=await self._netns(uid))))
            else:
                container = self.settings.ids.id(uid)
                attachment = Attachment(container_id=container, netns=await self._netns(uid), ifname=IFNAME)
                await self._twice(partial(self._client.delete, await self.network(), attachment))

    async def _cached(self, container_id: str) -> tuple[Record | Damaged, ...]:
        try:
            return await self._client.cached_of(container_id)
        except CniError as error:
            raise _failure(error, classify(error)) from error

    async def _delete(self, network: Network, attachment: Attachment) -> None:
        await self._twice(partial(self._client.delete, network, attachment))
        self._claims.drop(self.settings.ids.uid(attachment.container_id))

    async def _twice(self, delete: Callable[[], Awaitable[None]]) -> None:
        """DEL, again where the first one cleared its own way. Raises `SandboxFailed`."""
        for tries_left in (1, 0):
            try:
                await delete()
            except CniError as error:
                verdict = classify(error)
                if verdict.action is Action.IGNORE:
                    return
                if not tries_left or verdict.action is not Action.DELETE_AGAIN:
                    raise _failure(error, verdict) from error
            else:
                return

    async def _netns(self, uid: Uid) -> str:
        """Its path for a DEL; empty where the namespace is gone."""
        path = self._path(uid)
        found = await asyncio.to_thread(netns.state, path)
        return str(path) if found is NameState.MOUNTED else ""

    # ------------------------------------------------------------------------------------------ facts

    def _path(self, uid: Uid) -> Path:
        return self.settings.names / uid

    def _facts(self, ref: RuntimeRef) -> SandboxFacts:
        attached, damage = self._attachments.get(ref.uid), self._attachments.damages.get(ref.uid)
        path = str(self._path(ref.uid))
        if attached is None:
            return SandboxFacts(path, NetworkMode.CNI, attached=False)
        return SandboxFacts(
            path,
            NetworkMode.CNI,
            attached=True,
            addresses=attached.addresses,
            ports=attached.ports,
            policy=attached.policy,
            damage=damage.text if damage is not None else _UNSETTLED if attached.unsettled else "",
        )

    def _attachment(self, plan: SandboxPlan) -> Attachment:
        dns = plan.spec.network.dns
        return Attachment(
            container_id=self.settings.ids.id(plan.ref.uid),
            netns=str(self._path(plan.ref.uid)),
            ifname=IFNAME,
            capabilities=Capabilities(
                port_mappings=tuple(
                    PortMapping(port.host_port, port.container_port, port.protocol.lower()) for port in plan.ports
                ),
                dns=CapabilityDns(dns.nameservers, dns.searches, dns.options) if dns is not None else None,
            ),
        )


def _attached(plan: SandboxPlan, policy: NetworkPolicy, network: Network, result: Result) -> Attached:
    inside, port = None, ""
    # The reference plugins list a bridge, the veth that is its port, then the sandbox's end of that; what plugins after
    # them make on the node, as bandwidth does, comes at the end.
    for link in result.interfaces:
        if link.sandbox and link.name == IFNAME:
            inside = link
            break
        if not link.sandbox:
            port = link.name
    there = bridged(network)
    return Attached(
        ref=plan.ref,
        bridge=there.bridge if there is not None else "",
        subnets=tuple(str(subnet) for subnet in there.subnets) if there is not None else (),
        network=network.name,
        addresses=tuple(str(address) for address in addresses(result, IFNAME)),
        port=port,
        mac=inside.mac.lower() if inside is not None else "",
        ports=plan.ports,
        policy=policy,
        ways_out=tuple(sorted({route.version for route in default_routes(result)})),
    )


def _failure(error: CniError, verdict: Classified) -> SandboxFailed:
    message = f"[{verdict.kind.value}] {error}"
    return SandboxFailed(message, reason=verdict.reason, of_node=verdict.action is Action.STOP)
