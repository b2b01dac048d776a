"""Every name that other systems see: group, kinds, labels, annotations, finalizers; and ids that must not be mixed up.

One file, so that a reader can check what Perdure writes where, and so that a rename is one edit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

GROUP = "perdure.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

Uid = NewType("Uid", str)
"""`metadata.uid` of a runtime: the identity of one life of one name."""
NamespaceUid = NewType("NamespaceUid", str)
"""`metadata.uid` of a namespace: a namespace that was deleted and created again is another one."""
InstallationId = NewType("InstallationId", str)
"""uid of the `kube-system` namespace: which cluster. Two clusters on one host never touch each other's things."""
NodeName = NewType("NodeName", str)
NodeId = NewType("NodeId", str)
"""Random, kept in the agent's state folder: a replaced machine of the same name has another one."""
SnapshotKey = NewType("SnapshotKey", str)
"""`<short kind>-<uid>-<n>`; never reused."""
ContainerId = NewType("ContainerId", str)
ChainId = NewType("ChainId", str)
"""OCI chain id of an image's layers (image-spec, config.md "Layer ChainID"): which file system a snapshot stands on."""
OperationId = NewType("OperationId", str)
"""Deterministic (from uid and a counter in the node journal), so that a row that is sent twice is one row."""


class Kind(StrEnum):
    """The two runtime kinds; the same core."""

    BOT = "BotRuntime"
    GAME = "GameRuntime"

    @property
    def plural(self) -> str:
        """The resource name in API paths."""
        return {"BotRuntime": "botruntimes", "GameRuntime": "gameruntimes"}[self.value]

    @property
    def short(self) -> str:
        """The short name that `kubectl` knows and that keys begin with."""
        return {"BotRuntime": "br", "GameRuntime": "gr"}[self.value]


ARCHIVE_KIND = "RuntimeArchive"
ARCHIVE_PLURAL = "runtimearchives"
NODE_KIND = "RuntimeNode"
NODE_PLURAL = "runtimenodes"
LEASE_NAMESPACE = "perdure-system"

FINALIZER = f"{GROUP}/data-protection"
"""Put on with the binding, taken off only when the ledger says that the data is safe or gone."""

LABEL_NODE = f"{GROUP}/node"
LABEL_NODE_ID = f"{GROUP}/node-id"
LABEL_NAMESPACE_UID = f"{GROUP}/namespace-uid"
"""Published with the binding: agents need the identity without the right to read namespaces' histories."""

ANNOTATION_FORCE_RELEASE = f"{GROUP}/force-release"
"""Its value is the reason. Releases a Terminating object and leaves its data pinned on the node as an orphan."""
ANNOTATION_OUT_OF_SERVICE = f"{GROUP}/out-of-service"
ANNOTATION_REQUEST = f"{GROUP}/request"
"""What a person asks for once: `cleanup/<id>` of a runtime, `reindex/<id>` of a node. Answered in `status.lastRequest`."""
ANNOTATION_HOST_PORTS = f"{GROUP}/host-ports"
"""JSON, port name -> number on the node; published with the binding. The ledger is the truth, this is its copy."""

# Labels on engine objects (snapshots, containers, leases).
ENGINE_LABEL_INSTALLATION = f"{GROUP}/installation"
ENGINE_LABEL_UID = f"{GROUP}/uid"
ENGINE_LABEL_KIND = f"{GROUP}/kind"
ENGINE_LABEL_NAMESPACE = f"{GROUP}/namespace"
ENGINE_LABEL_NAMESPACE_UID = f"{GROUP}/namespace-uid"
ENGINE_LABEL_NAME = f"{GROUP}/name"
ENGINE_LABEL_N = f"{GROUP}/n"
ENGINE_LABEL_IMAGE = f"{GROUP}/image"
ENGINE_LABEL_IMAGE_DIGEST = f"{GROUP}/image-digest"
ENGINE_LABEL_CHAIN = f"{GROUP}/chain"
ENGINE_LABEL_GATE = f"{GROUP}/restore-pending"
"""Sequence of the archive that must be restored into this snapshot before a task may start on it; absent = open."""
ENGINE_LABEL_SPEC = f"{GROUP}/spec-hash"
LABEL_GC_ROOT = "containerd.io/gc.root"


def generation(key: SnapshotKey) -> int:
    """The `n` in a snapshot's key."""
    return int(key.rpartition("-")[2])


@dataclass(frozen=True, slots=True)
class Identity:
    """What a StatefulSet would call the claim's name: data preserved under it comes back to whoever has it next.

    The namespace's uid says which life of the namespace it was, and comes from a label, which people can write. Its name
    comes from the object's address, which nobody can choose freely: who looks for archives must compare both.
    """

    namespace_uid: NamespaceUid
    namespace: str
    kind: Kind
    name: str


@dataclass(frozen=True, slots=True)
class RuntimeRef:
    """One life of one runtime: enough to name everything that belongs to it."""

    kind: Kind
    namespace: str
    name: str
    uid: Uid
    namespace_uid: NamespaceUid

    @property
    def identity(self) -> Identity:
        return Identity(self.namespace_uid, self.namespace, self.kind, self.name)

    @property
    def container_id(self) -> ContainerId:
        """One container per life: deterministic, so create and start can be repeated."""
        return ContainerId(f"{self.kind.short}-{self.uid}")

    def snapshot_key(self, n: int) -> SnapshotKey:
        """The key of generation `n` (from 1)."""
        return SnapshotKey(f"{self.kind.short}-{self.uid}-{n}")

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"
