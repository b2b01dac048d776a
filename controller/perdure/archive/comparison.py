"""Is a layer still what an archive was made of? Nothing is removed, and no archive used again, before that is proven.

Called by `writer` (an export that is repeated) and for `compare` (before a snapshot goes). The layer is walked, and no
file of it is read: the kernel keeps for every inode when it was last changed, and no program can set that time. Where
that cannot tell (the manifest is of an earlier version) the layer counts as written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from perdure.archive import layout
from perdure.archive.faults import Fault, FaultKind, layer_errors, store_errors
from perdure.archive.isolation import bind_read_only
from perdure.archive.jobs import Compare
from perdure.archive.manifest import Manifest, ManifestError
from perdure.archive.survey import Survey, Unarchivable, survey


def compare(job: Compare, tick: Callable[[], None]) -> Manifest:
    """Raises `Fault`: of kind `ARCHIVE_OUTDATED` if the layer was written since."""
    known = job.archive
    what = f"comparing {known.snapshot_key} with archive {known.sequence} in {known.store}"
    manifest = _manifest(job, what)
    if manifest.sha256 != known.sha256:
        raise Fault(FaultKind.ARCHIVE_CORRUPT, f"{what}: its manifest is not of the archive that the catalogue knows")
    check_unchanged(manifest, walk(job.upper, what, tick), known.sequence)
    return manifest


def _manifest(job: Compare, what: str) -> Manifest:
    known = job.archive
    try:
        with store_errors(what), layout.open_folder(Path(known.store), known.folder) as folder:
            manifest = layout.read_manifest(folder, known.sequence)
    except ManifestError as error:
        raise Fault(FaultKind.ARCHIVE_CORRUPT, f"{what}: {error}; it is left as it is") from error
    if manifest is None:
        raise Fault(FaultKind.ARCHIVE_CORRUPT, f"{what}: its manifest is missing; it is left as it is")
    return manifest


def walk(upper: str, what: str, tick: Callable[[], None]) -> Survey:
    """What is in the layer now. It cannot be written through this process from then on. Raises `Fault`."""
    with layer_errors(FaultKind.ARCHIVE_FAILED, f"{what}: reading {upper}"):
        root = os.fsencode(upper)
        bind_read_only(root)
        try:
            return survey(root, tick)
        except Unarchivable as error:
            raise Fault(FaultKind.ARCHIVE_FAILED, f"{what}: {error}") from error


def check_unchanged(manifest: Manifest, found: Survey, sequence: int) -> None:
    """Raises `Fault` of kind `ARCHIVE_OUTDATED`."""
    contents = manifest.contents
    if (contents.tree, contents.changes) != (found.digest.hexdigest(), found.changes):
        raise Fault(
            FaultKind.ARCHIVE_OUTDATED,
            f"{contents.source.snapshot_key} was written since archive {sequence} was made of it: it needs another archive",
        )
