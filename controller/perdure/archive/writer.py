"""Export: a layer becomes an archive file that was read back from the disk, and then, last of all, has a manifest.

Runs in the worker. A crash at any instant leaves either nothing that counts (a `.partial` file, or an archive without
its manifest), or a complete archive.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from perdure.archive import layout
from perdure.archive.comparison import check_unchanged, walk
from perdure.archive.faults import Fault, FaultKind, store_errors
from perdure.archive.jobs import Export
from perdure.archive.manifest import NAMED_SOCKETS, Contents, Manifest, ManifestError, encode_frame, encode_path
from perdure.archive.stages import TAR, ZSTD, Pipe, Stage, tool_path, tool_version
from perdure.archive.survey import Survey
from perdure.archive.tree import TAR_XATTR_OPTIONS
from perdure.archive.verifier import Mismatch, check_manifest, forget_cached_pages, read_back

_POLL_SECONDS = 0.5


def export(job: Export, tick: Callable[[], None]) -> Manifest:
    """Raises `Fault`."""
    what = f"archiving {job.source.snapshot_key} as {job.sequence}"
    with (
        store_errors(f"{what} in the store {job.store}"),
        layout.open_folder(Path(job.store), tuple(job.folder), make=True) as folder,
        layout.locked(folder),
    ):
        layout.sweep_partial(folder)
        known = _known(job, folder)
        found = walk(job.upper, what, tick)
        if known is not None:
            check_unchanged(known, found, job.sequence)
            _check_existing(job, folder, known, tick)
            return known
        try:
            return _write(job, folder, found, tick)
        except BaseException:
            layout.sweep_partial(folder)
            raise


def _known(job: Export, folder: int) -> Manifest | None:
    """The manifest that is there already under this sequence."""
    try:
        manifest = layout.read_manifest(folder, job.sequence)
    except ManifestError as error:
        raise _corrupt(job, error) from error
    if manifest is None:
        return None
    source = manifest.contents.source
    if source != job.source:
        raise Fault(
            FaultKind.ARCHIVE_FAILED,
            f"the store {job.store} has an archive {job.sequence} of {source.snapshot_key} ({source.image}), "
            f"not of {job.source.snapshot_key} ({job.source.image}); move it away or archive under another sequence",
        )
    return manifest


def _check_existing(job: Export, folder: int, manifest: Manifest, tick: Callable[[], None]) -> None:
    """A finished archive is not touched, also if it is bad: the catalogue may have it as verified."""
    try:
        fd = layout.open_archive(folder, job.sequence)
        try:
            forget_cached_pages(fd)
            back = read_back(fd, manifest.contents, tick, limit=manifest.uncompressed_bytes)
        finally:
            os.close(fd)
        check_manifest(
            manifest,
            sha256=back.sha256,
            size=back.bytes,
            uncompressed=back.uncompressed_bytes,
            entries=manifest.contents.entries,
        )
    except (Mismatch, FileNotFoundError) as error:
        raise _corrupt(job, error) from error


def _corrupt(job: Export, error: Exception) -> Fault:
    return Fault(
        FaultKind.ARCHIVE_CORRUPT,
        f"archive {job.sequence} of {job.source.snapshot_key} in {job.store} is corrupt: {error}; it is left as it is",
    )


def _write(job: Export, folder: int, found: Survey, tick: Callable[[], None]) -> Manifest:
    contents = _describe(job, found)
    try:
        frame = encode_frame(contents)
    except ManifestError as error:
        raise Fault(FaultKind.ARCHIVE_FAILED, f"archiving {job.source.snapshot_key}: {error}") from error
    name = layout.archive_name(job.sequence)
    fd = layout.new_partial(folder, name)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(frame)
        _run_tar(job, found, fd, tick)
        os.fsync(fd)
        forget_cached_pages(fd)
        try:
            back = read_back(fd, contents, tick)
        except Mismatch as error:
            raise Fault(
                FaultKind.ARCHIVE_FAILED,
                f"archiving {job.source.snapshot_key}: what was read back from {job.store} is not the layer: {error}; "
                "was the layer written meanwhile? If not, check the disk",
            ) from error
    finally:
        os.close(fd)
    layout.publish(folder, name)
    manifest = Manifest(
        sha256=back.sha256,
        bytes=back.bytes,
        uncompressed_bytes=back.uncompressed_bytes,
        empty=contents.empty,
        contents=contents,
    )
    layout.write_manifest(folder, job.sequence, manifest)
    _check_manifest_on_disk(folder, job, manifest, tick)
    return manifest


def _check_manifest_on_disk(folder: int, job: Export, manifest: Manifest, tick: Callable[[], None]) -> None:
    """The names lead to what was verified: nobody put something else there meanwhile."""
    fd = layout.open_archive(folder, job.sequence)
    try:
        size = os.fstat(fd).st_size
    finally:
        os.close(fd)
    tick()
    if layout.read_manifest(folder, job.sequence) != manifest or size != manifest.bytes:
        raise Fault(
            FaultKind.ARCHIVE_FAILED, f"archive {job.sequence} in {job.store} was replaced while it was written"
        )


def _describe(job: Export, found: Survey) -> Contents:
    return Contents(
        source=job.source,
        consistency="stopped",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tools={tool: tool_version(tool) for tool in (TAR, ZSTD)},
        entries=found.digest.entries,
        content_bytes=found.digest.content_bytes,
        tree=found.digest.hexdigest(),
        deletions=tuple(map(encode_path, found.deletions)),
        opaque=tuple(map(encode_path, found.opaque)),
        devices=tuple(found.devices),
        sockets=tuple(map(encode_path, found.sockets[:NAMED_SOCKETS])),
        more_sockets=max(0, len(found.sockets) - NAMED_SOCKETS),
        changes=found.changes,
    )


def _run_tar(job: Export, found: Survey, output: int, tick: Callable[[], None]) -> None:
    """tar | zstd into `output`. Every stage must end with 0, and tar must have nothing to say."""
    exclude_file, exclude_options = _exclusions(found.outside_tar)
    pipe = Pipe()
    stages: list[Stage] = []
    try:
        tar = Stage(
            "tar",
            [*_tar_command(job.upper), f"--exclude-from=/proc/self/fd/{exclude_file}", *exclude_options, "."],
            stdin=subprocess.DEVNULL,
            stdout=pipe.write_end,
            pass_fds=[exclude_file],
        )
        stages.append(tar)
        zstd = Stage("zstd", [tool_path(ZSTD), "-q", "-T0", "-1", "-c"], stdin=pipe.read_end, stdout=output)
        stages.append(zstd)
        pipe.close()
        _wait(zstd, output, tick)
        tar.wait()
    finally:
        pipe.close()
        os.close(exclude_file)
        for stage in stages:
            stage.kill()
    _judge(job, tar, zstd)


def _tar_command(upper: str) -> list[str]:
    command = [tool_path(TAR), "--create", "--file=-", "--format=posix", "--pax-option=delete=atime,delete=ctime"]
    command += ["--numeric-owner", *TAR_XATTR_OPTIONS, "--sparse", "--sort=name", "--blocking-factor=256"]
    return [*command, "--anchored", "--no-wildcards", f"--directory={upper}"]


def _exclusions(paths: list[bytes]) -> tuple[int, list[bytes]]:
    """A descriptor of a file of names, and options for the names that such a file cannot carry.

    tar cuts white space off the end of a line (gnulib, add_exclude_fp), and a name may hold newlines.
    """
    odd = [path for path in paths if b"\n" in path or path[-1:].isspace()]
    plain = set(paths).difference(odd)
    fd = os.memfd_create("excluded")
    with open(fd, "wb", closefd=False) as file:
        file.writelines(b"./%b\n" % path for path in plain)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd, [b"--exclude=./" + path for path in odd]


def _wait(zstd: Stage, output: int, tick: Callable[[], None]) -> None:
    """Wait for the end; report progress as long as the archive grows."""
    size = -1
    while not zstd.ended(_POLL_SECONDS):
        grown = os.fstat(output).st_size
        if grown != size:
            tick()
        size = grown
    zstd.wait()


def _judge(job: Export, tar: Stage, zstd: Stage) -> None:
    if zstd.status != 0:
        full = "No space left on device" in zstd.said or "Disk quota exceeded" in zstd.said
        raise Fault(
            FaultKind.STORE_FULL if full else FaultKind.STORE_UNAVAILABLE,
            f"archiving {job.source.snapshot_key} into {job.store}: {zstd.describe()}"
            + ("; free space in the store or enlarge it" if full else "; check the store's disk"),
        )
    if tar.status != 0 or tar.said:
        raise Fault(
            FaultKind.ARCHIVE_FAILED,
            f"archiving {job.source.snapshot_key}: {tar.describe()}; nothing may write to a layer while it is archived",
        )
