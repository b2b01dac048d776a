"""Labels on our snapshots, containers and leases: written when they are made, read when they are found again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from perdure.api import names
from perdure.api.conditions import Reason
from perdure.api.names import ChainId, ContainerId, InstallationId, Kind, NamespaceUid, RuntimeRef, SnapshotKey, Uid
from perdure.engine.containerd.messages import ContainerRecord, SnapshotInfo
from perdure.plan.world import ContainerFacts, SnapshotFacts, Workspace
from perdure.reconcile.ports.errors import EngineRefused

UNPACK_PREFIX = "unpack-"
"""Of the keys of snapshots that an image's layers are unpacked into; they are nobody's, and carry no labels."""

_CONTAINER_ID = re.compile(r"(?:br|gr)-(.+)")
_KEY = re.compile(r"(?:br|gr)-.+-([0-9]+)")


class UnreadableLabels(EngineRefused):
    """A thing of ours whose labels do not say what they must; the message names it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.SNAPSHOT_CONFLICT, blocks_data=True)


def identity_labels(ref: RuntimeRef, installation: InstallationId) -> dict[str, str]:
    """Whose a thing is."""
    return {
        names.ENGINE_LABEL_INSTALLATION: installation,
        names.ENGINE_LABEL_UID: ref.uid,
        names.ENGINE_LABEL_KIND: ref.kind.value,
        names.ENGINE_LABEL_NAMESPACE: ref.namespace,
        names.ENGINE_LABEL_NAMESPACE_UID: ref.namespace_uid,
        names.ENGINE_LABEL_NAME: ref.name,
    }


def snapshot_labels(ref: RuntimeRef, installation: InstallationId, workspace: Workspace) -> dict[str, str]:
    """All labels of a workspace's snapshot; the value of gc.root is not read by containerd."""
    labels = identity_labels(ref, installation) | {
        names.LABEL_GC_ROOT: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        names.ENGINE_LABEL_N: str(workspace.n),
        names.ENGINE_LABEL_IMAGE: workspace.image,
        names.ENGINE_LABEL_IMAGE_DIGEST: workspace.image_digest,
        names.ENGINE_LABEL_CHAIN: workspace.chain_id,
    }
    if workspace.gate is not None:
        labels[names.ENGINE_LABEL_GATE] = str(workspace.gate.sequence)
    return labels


def belongs_to(labels: Mapping[str, str], installation: InstallationId) -> bool:
    return labels.get(names.ENGINE_LABEL_INSTALLATION) == installation


def reference(labels: Mapping[str, str]) -> RuntimeRef:
    """Whose a thing is, from its labels. Raises `UnreadableLabels`."""
    try:
        return RuntimeRef(
            kind=Kind(labels[names.ENGINE_LABEL_KIND]),
            namespace=labels[names.ENGINE_LABEL_NAMESPACE],
            name=labels[names.ENGINE_LABEL_NAME],
            uid=Uid(labels[names.ENGINE_LABEL_UID]),
            namespace_uid=NamespaceUid(labels[names.ENGINE_LABEL_NAMESPACE_UID]),
        )
    except (KeyError, ValueError) as error:
        raise UnreadableLabels(f"labels {dict(labels)!r} do not name a runtime; correct them") from error


def snapshot_facts(info: SnapshotInfo) -> SnapshotFacts:
    """Raises `UnreadableLabels`: a gate that cannot be read must not count as open."""
    labels = info.labels
    key_n = _KEY.fullmatch(info.key)
    n, gate = labels.get(names.ENGINE_LABEL_N) or (key_n[1] if key_n else ""), labels.get(names.ENGINE_LABEL_GATE)
    if not n.isdigit() or (gate is not None and not gate.isdigit()):
        raise UnreadableLabels(
            f"snapshot {info.key} has generation {n!r} and restore gate {gate!r}: not numbers; correct its labels"
        )
    return SnapshotFacts(
        key=SnapshotKey(info.key),
        n=int(n),
        chain_id=ChainId(info.parent),
        image=labels.get(names.ENGINE_LABEL_IMAGE, ""),
        image_digest=labels.get(names.ENGINE_LABEL_IMAGE_DIGEST, ""),
        gate=None if gate is None else int(gate),
    )


def container_facts(record: ContainerRecord) -> ContainerFacts:
    return ContainerFacts(
        id=ContainerId(record.id),
        snapshot_key=SnapshotKey(record.snapshot_key),
        spec_hash=record.labels.get(names.ENGINE_LABEL_SPEC, ""),
    )


def uid_of(container: str) -> Uid | None:
    """The uid in a container id of our form, or None for a stranger's."""
    found = _CONTAINER_ID.fullmatch(container)
    return Uid(found[1]) if found else None
