"""Is a layer still what an archive was made of? Nothing is removed, and no archive used again, before that is proven.

Called by `writer` (an export that is repeated) and for `compare` (before a snapshot goes: the archive must still be there,
too). The layer is walked, and no file of it is read: the kernel keeps for every inode when it was last changed, and no
program can set that time. Where that cannot tell (the manifest is of an earlier version) the layer counts as written.
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
    """Raises `Fault`: of kind `ARCHIVE_OUTDATED` if the layer was written since, of kind `ARCHIVE_CORRUPT` if the archive
    is not there, or not all of it."""
    known = job.archive
    what = f"comparing {known.snapshot_key} with archive {known.sequence} in {known.store}"
    manifest, size = _stored(job, what)
    if manifest.sha256 != known.sha256:
        raise Fault(FaultKind.ARCHIVE_CORRUPT, f"{what}: its manifest is not of the archive that the catalogue knows")
    if size != known.bytes:
        raise Fault(
            FaultKind.ARCHIVE_CORRUPT,
            f"{what}: it has {size} bytes, but the catalogue says {known.bytes}; it is left as it is",
        )
    check_unchanged(manifest, walk(job.upper, what, tick), known.sequence)
    return manifest


def _stored(job: Compare, what: str) -> tuple[Manifest, int]:
    """The archive's manifest, and the size of its file."""
    known = job.archive
    try:
        with store_errors(what), layout.open_folder(Path(known.store), known.folder) as folder:
            manifest = layout.read_manifest(folder, known.sequence)
            size = _size(folder, known.sequence)
    except ManifestError as error:
        raise Fault(FaultKind.ARCHIVE_CORRUPT, f"{what}: {error}; it is left as it is") from error
    if manifest is None:
        raise Fault(FaultKind.ARCHIVE_CORRUPT, f"{what}: its manifest is missing; it is left as it is")
    if size is None:
        message = f"{what}: its manifest is there, but not its bytes; it is left as it is"
        raise Fault(FaultKind.ARCHIVE_CORRUPT, message)
    return manifest, size


def _size(folder: int, sequence: int) -> int | None:
    """None: there is no such file. Raises `OSError`."""
    try:
        fd = layout.open_archive(folder, sequence)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


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
