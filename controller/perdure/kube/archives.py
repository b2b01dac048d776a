"""RuntimeArchive objects: what the controller makes of the catalogue's archives, and what people change in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from perdure.api.archive import ArchiveSource, ArchiveSpec, ArchiveStatus, object_name
from perdure.api.names import API_VERSION, ARCHIVE_KIND, NodeName
from perdure.plan.world import ArchiveFacts


@dataclass(frozen=True, slots=True)
class ArchiveObject:
    """One RuntimeArchive as last seen."""

    namespace: str
    name: str
    uid: str
    spec: ArchiveSpec
    status: ArchiveStatus

    def is_about(self, facts: ArchiveFacts) -> bool:
        """Whether it lists exactly this archive; a status that was never written does not speak against it."""
        source = self.spec.source
        same = (source.kind, source.name, source.uid) == (facts.kind.value, facts.name, facts.uid)
        return same and self.status.sequence in (0, facts.sequence)


def parse_archive(raw: Mapping[str, Any]) -> ArchiveObject:
    """Raises `KeyError` or `msgspec.ValidationError` for what is none."""
    meta = raw["metadata"]
    return ArchiveObject(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        spec=msgspec.convert(raw.get("spec") or {}, ArchiveSpec, strict=False),
        status=msgspec.convert(raw.get("status") or {}, ArchiveStatus, strict=False),
    )


def archive_name(facts: ArchiveFacts) -> str:
    """The object that lists this archive."""
    return facts.object_name or object_name(facts.kind, facts.name, facts.sequence)


def archive_body(facts: ArchiveFacts) -> dict[str, Any]:
    """The object, without its status. It has no owner: it outlives its runtime."""
    spec = ArchiveSpec(source=ArchiveSource(kind=facts.kind.value, name=facts.name, uid=facts.uid), retain=facts.retain)
    return {
        "apiVersion": API_VERSION,
        "kind": ARCHIVE_KIND,
        "metadata": {"name": archive_name(facts), "namespace": facts.namespace},
        "spec": msgspec.to_builtins(spec),
    }


def archive_status(facts: ArchiveFacts, node: NodeName | None) -> ArchiveStatus:
    return ArchiveStatus(
        sequence=facts.sequence,
        store=facts.store,
        node_name=node or "",
        sha256=facts.sha256,
        bytes=facts.bytes,
        entries=facts.entries,
        uncompressed_bytes=facts.uncompressed_bytes,
        image=facts.image,
    )
