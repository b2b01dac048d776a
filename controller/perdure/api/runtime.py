"""BotRuntime and GameRuntime as typed, frozen objects: what the API server sent, parsed once at the edge.

Called by the intake for each event. A test holds these fields against `crds/` in both directions, so a field that is
only in one of the two is found. Stored objects may be older than the CRD: parsing is tolerant of unknown fields, and an
object that cannot be parsed is still an object (with `invalid` set), so that it can be shown, stopped and deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from perdure.api import names
from perdure.api.duration import parse_ttl
from perdure.api.names import Kind, NamespaceUid, NodeId, NodeName, RuntimeRef, Uid
from perdure.api.network import (
    Dns,
    HostAlias,
    Network,
    NetworkMode,
    PortStatus,
    RuntimePort,
    read_host_ports,
)
from perdure.api.phases import Phase
from perdure.api.probes import Probe
from perdure.api.request import Request, parse_request
from perdure.api.struct import Struct


class DesiredState(StrEnum):
    RUNNING = "Running"
    STOPPED = "Stopped"
    REMOVED = "Removed"


class RestartPolicy(StrEnum):
    ALWAYS = "Always"
    ON_FAILURE = "OnFailure"
    NEVER = "Never"


class PullPolicy(StrEnum):
    IF_NOT_PRESENT = "IfNotPresent"
    ALWAYS = "Always"
    NEVER = "Never"


class DeletionPolicy(StrEnum):
    PRESERVE = "Preserve"
    PURGE = "Purge"


class RestorePolicy(StrEnum):
    LATEST = "Latest"
    NONE = "None"
    ARCHIVE = "Archive"


class KeySelector(Struct, frozen=True, kw_only=True):
    name: str
    key: str
    optional: bool = False


class FieldSelector(Struct, frozen=True, kw_only=True):
    field_path: str


class EnvSource(Struct, frozen=True, kw_only=True):
    secret_key_ref: KeySelector | None = None
    config_map_key_ref: KeySelector | None = None
    field_ref: FieldSelector | None = None


class EnvVar(Struct, frozen=True, kw_only=True):
    name: str
    value: str | None = None
    value_from: EnvSource | None = None


class ResourceRequests(Struct, frozen=True, kw_only=True):
    cpu: str | int = "100m"
    memory: str | int = "128Mi"


class ResourceLimits(Struct, frozen=True, kw_only=True):
    cpu: str | int = "1"
    memory: str | int = "512Mi"
    pids: int = 512


class Resources(Struct, frozen=True, kw_only=True):
    requests: ResourceRequests = ResourceRequests()
    limits: ResourceLimits = ResourceLimits()


class Stop(Struct, frozen=True, kw_only=True):
    signal: str | None = None
    """None: the image's STOPSIGNAL, else SIGTERM."""
    grace_period_seconds: int = 10


class Restore(Struct, frozen=True, kw_only=True):
    policy: RestorePolicy = RestorePolicy.LATEST
    archive: str | None = None
    """Name of a RuntimeArchive in the same namespace; for policy Archive."""


class RuntimeSpec(Struct, frozen=True, kw_only=True):
    """The common spec of both runtime kinds; what each field means is said in the CRD."""

    image: str
    image_pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    working_dir: str | None = None
    user: str | None = None
    resources: Resources = Resources()
    desired_state: DesiredState = DesiredState.RUNNING
    restart_policy: RestartPolicy = RestartPolicy.ALWAYS
    stop: Stop = Stop()
    stopped_ttl: str = msgspec.field(default="720h", name="stoppedTTL")
    deletion_policy: DeletionPolicy = DeletionPolicy.PRESERVE
    restore: Restore = Restore()
    min_ready_seconds: int = 0
    startup_probe: Probe | None = None
    readiness_probe: Probe | None = None
    liveness_probe: Probe | None = None
    network: Network = Network()
    ports: tuple[RuntimePort, ...] = ()
    host_aliases: tuple[HostAlias, ...] = ()
    node_name: str | None = None
    node_selector: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def stopped_ttl_seconds(self) -> float | None:
        """None: a stopped container is never cleaned up by itself."""
        return parse_ttl(self.stopped_ttl)


class Condition(Struct, frozen=True, kw_only=True):
    type: str
    status: str
    reason: str
    message: str = ""
    last_transition_time: str = ""
    observed_generation: int = 0


class LastExit(Struct, frozen=True, kw_only=True):
    code: int | None = None
    """None: the engine lost it (it was away when the process ended)."""
    signal: int | None = None
    reason: str = ""
    """`Completed`, `Error`, `OOMKilled`, `Unhealthy` (a probe failed), `Unknown`."""
    at: str = ""


class RequestStatus(Struct, frozen=True, kw_only=True):
    """How the last request by annotation was answered."""

    id: str
    outcome: str
    code: str = ""
    message: str = ""


class RuntimeStatus(Struct, frozen=True, kw_only=True):
    """`status`, written by the controller until a runtime is bound, by the node's agent from then on."""

    phase: str | None = None
    observed_generation: int = 0
    conditions: tuple[Condition, ...] = ()
    node_name: str | None = None
    node_id: str | None = msgspec.field(default=None, name="nodeID")
    container_id: str | None = msgspec.field(default=None, name="containerID")
    snapshot_key: str | None = None
    image_digest: str | None = None
    address: str | None = None
    ports: tuple[PortStatus, ...] = ()
    started_at: str | None = None
    stopped_at: str | None = None
    expires_at: str | None = None
    restarts: int = 0
    last_exit: LastExit | None = None
    restored_from: str | None = None
    last_archive: str | None = None
    last_operation: str | None = None
    last_request: RequestStatus | None = None


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """One object as last seen."""

    kind: Kind
    namespace: str
    name: str
    uid: Uid
    generation: int
    resource_version: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    finalizers: tuple[str, ...]
    deletion_timestamp: str | None
    creation_timestamp: str
    spec: RuntimeSpec
    status: RuntimeStatus
    invalid: str | None = None
    """Why `spec` could not be parsed; `spec` then holds defaults and must not be acted on."""

    @property
    def terminating(self) -> bool:
        return self.deletion_timestamp is not None

    @property
    def protected(self) -> bool:
        """Whether our finalizer is on: only then may data be made for this object."""
        return names.FINALIZER in self.finalizers

    @property
    def node_id(self) -> NodeId | None:
        value = self.labels.get(names.LABEL_NODE_ID)
        return NodeId(value) if value else None

    @property
    def node_name(self) -> NodeName | None:
        value = self.labels.get(names.LABEL_NODE)
        return NodeName(value) if value else None

    @property
    def namespace_uid(self) -> NamespaceUid | None:
        value = self.labels.get(names.LABEL_NAMESPACE_UID)
        return NamespaceUid(value) if value else None

    @property
    def host_ports(self) -> Mapping[str, int]:
        """The numbers on the node that the controller published with the binding, by the name of the port."""
        return read_host_ports(self.annotations.get(names.ANNOTATION_HOST_PORTS))

    @property
    def force_release(self) -> str | None:
        """The reason a person gave for releasing this object without its data being dealt with."""
        return self.annotations.get(names.ANNOTATION_FORCE_RELEASE)

    @property
    def request(self) -> Request | None:
        """What a person asks for once, beside the spec."""
        return parse_request(self.annotations.get(names.ANNOTATION_REQUEST))

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"

    def ref(self, namespace_uid: NamespaceUid) -> RuntimeRef:
        return RuntimeRef(self.kind, self.namespace, self.name, self.uid, namespace_uid)


def parse_runtime(raw: Mapping[str, Any]) -> Runtime:
    """An object of the API server, as JSON, made typed.

    Never raises for what a user can store (see `Runtime.invalid`); raises `KeyError` or `ValueError` for what is no
    runtime at all (no uid, another kind).
    """
    meta = raw["metadata"]
    invalid = None
    try:
        spec = msgspec.convert(raw.get("spec") or {}, RuntimeSpec, strict=False)
        _check_ttl(spec)
        _check_probes(spec)
    except msgspec.ValidationError as error:
        spec, invalid = RuntimeSpec(image=""), str(error)
    try:
        status = msgspec.convert(raw.get("status") or {}, RuntimeStatus, strict=False)
    except msgspec.ValidationError:
        # A status is ours to write: one that cannot be read is replaced by what is observed, and proves nothing.
        status = RuntimeStatus()
    return Runtime(
        kind=Kind(raw["kind"]),
        namespace=meta["namespace"],
        name=meta["name"],
        uid=Uid(meta["uid"]),
        generation=int(meta.get("generation", 0)),
        resource_version=str(meta.get("resourceVersion", "")),
        labels=dict(meta.get("labels") or {}),
        annotations=dict(meta.get("annotations") or {}),
        finalizers=tuple(meta.get("finalizers") or ()),
        deletion_timestamp=meta.get("deletionTimestamp"),
        creation_timestamp=str(meta.get("creationTimestamp", "")),
        spec=spec,
        status=status,
        invalid=invalid,
    )


def _check_ttl(spec: RuntimeSpec) -> None:
    try:
        parse_ttl(spec.stopped_ttl)
    except ValueError as error:
        raise msgspec.ValidationError(f"{error} - at `$.stoppedTTL`") from error


def _check_probes(spec: RuntimeSpec) -> None:
    """What the CRD cannot say: a probe's port by name is one of the runtime's own."""
    named = {port.name for port in spec.ports}
    probes = {
        "startupProbe": spec.startup_probe,
        "readinessProbe": spec.readiness_probe,
        "livenessProbe": spec.liveness_probe,
    }
    for field, probe in probes.items():
        port = probe.port if probe is not None else None
        if isinstance(port, str) and port not in named:
            known = ", ".join(sorted(named)) or "there are none"
            raise msgspec.ValidationError(
                f"{field}: no port is named {port!r} in spec.ports ({known}) - at `$.{field}`"
            )


def status_to_json(status: RuntimeStatus) -> dict[str, Any]:
    """The status as the API server stores it."""
    result: dict[str, Any] = msgspec.to_builtins(status)
    return result


__all__ = [
    "Condition",
    "DeletionPolicy",
    "DesiredState",
    "Dns",
    "EnvSource",
    "EnvVar",
    "FieldSelector",
    "HostAlias",
    "KeySelector",
    "LastExit",
    "Network",
    "NetworkMode",
    "Phase",
    "Probe",
    "PullPolicy",
    "RequestStatus",
    "ResourceLimits",
    "ResourceRequests",
    "Resources",
    "RestartPolicy",
    "Restore",
    "RestorePolicy",
    "Runtime",
    "RuntimeSpec",
    "RuntimeStatus",
    "Stop",
    "parse_runtime",
    "status_to_json",
]
