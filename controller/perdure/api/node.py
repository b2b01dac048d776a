"""RuntimeNode: what an agent reports of its node; the controller chooses nodes from these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from perdure.api import names
from perdure.api.names import NodeId, NodeName
from perdure.api.request import OF_NODES, Request, parse_request
from perdure.api.runtime import Condition, RequestStatus
from perdure.api.struct import Struct


class NodeSpec(Struct, frozen=True, kw_only=True):
    unschedulable: bool = False
    """Cordon: nothing new is bound here; what is here stays."""


class NodeAmounts(Struct, frozen=True, kw_only=True):
    cpu: str | int = "0"
    memory: str | int = "0"


class OrphanEntry(Struct, frozen=True, kw_only=True):
    """Data of ours on the node that no object claims."""

    uid: str
    kind: str
    namespace: str
    name: str
    snapshot_key: str
    running: bool = False


class NodeStatus(Struct, frozen=True, kw_only=True):
    node_id: str = msgspec.field(default="", name="nodeID")
    engine: str = ""
    engine_version: str = ""
    capacity: NodeAmounts = NodeAmounts()
    allocatable: NodeAmounts = NodeAmounts()
    conditions: tuple[Condition, ...] = ()
    runtimes: int = 0
    orphans: tuple[OrphanEntry, ...] = ()
    last_request: RequestStatus | None = None


class RuntimeNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node as last seen."""

    name: NodeName
    uid: str
    resource_version: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    terminating: bool
    spec: NodeSpec
    status: NodeStatus

    @property
    def node_id(self) -> NodeId:
        return NodeId(self.status.node_id)

    @property
    def request(self) -> Request | None:
        """What a person asks of the node, once."""
        return parse_request(self.annotations.get(names.ANNOTATION_REQUEST), OF_NODES)

    @property
    def out_of_service(self) -> bool:
        return names.ANNOTATION_OUT_OF_SERVICE in self.annotations


def parse_node(raw: Mapping[str, Any]) -> RuntimeNode:
    """A RuntimeNode made typed; raises `KeyError` or `msgspec.ValidationError` for what is none."""
    meta = raw["metadata"]
    return RuntimeNode(
        name=NodeName(meta["name"]),
        uid=meta["uid"],
        resource_version=str(meta.get("resourceVersion", "")),
        labels=dict(meta.get("labels") or {}),
        annotations=dict(meta.get("annotations") or {}),
        terminating="deletionTimestamp" in meta,
        spec=msgspec.convert(raw.get("spec") or {}, NodeSpec, strict=False),
        status=msgspec.convert(raw.get("status") or {}, NodeStatus, strict=False),
    )
