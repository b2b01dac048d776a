"""Restore: an archive that the catalogue vouches for becomes a layer, in one atomic step at the end.

Runs in the worker. The tar is extracted by GNU tar in a jail (bubblewrap: no network, no capability but those that
owners and attributes need, staging mounted nosuid,nodev) after each of its headers was accepted by our own reader; what
a tar cannot carry is made by our own code; then the whole tree is walked and compared. Killed at any instant, the next
attempt starts over in an empty staging folder.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from perdure.archive import layout
from perdure.archive.faults import Fault, FaultKind, layer_errors, store_errors
from perdure.archive.isolation import exchange, sync_file_system
from perdure.archive.jobs import Known, Restore, Verify
from perdure.archive.manifest import Contents, DeviceNode, Manifest, ManifestError, decode_path, encode_path, read_frame
from perdure.archive.stages import BWRAP, TAR, Pipe, Stage, tool_path
from perdure.archive.survey import Survey, Unarchivable, open_parent, survey
from perdure.archive.tree import TAR_XATTR_OPTIONS
from perdure.archive.verifier import Mismatch, check_manifest, forget_cached_pages, hash_file, read_back

_CAPABILITIES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SETFCAP")
_LIBRARY_FOLDERS = ("/lib", "/lib32", "/lib64")
_TREE = "tree"


def verify(job: Verify, tick: Callable[[], None]) -> Manifest:
    """Read the archive from the disk and hold it against its manifest and the catalogue. Raises `Fault`."""
    with ExitStack() as stack:
        fd, manifest = _open(job.archive, stack, tick)
        forget_cached_pages(fd)
        _read(job.archive, fd, manifest, tick)
        return manifest


def restore(job: Restore, tick: Callable[[], None]) -> Manifest:
    """Raises `Fault`."""
    doing = f"restoring archive {job.archive.sequence} into {job.key}"
    with ExitStack() as stack:
        fd, manifest = _open(job.archive, stack, tick)
        stack.enter_context(layer_errors(FaultKind.RESTORE_FAILED, doing))
        staging = os.fsencode(job.staging) + b"/" + os.fsencode(layout.component(job.key)) + b".restore"
        _remove_tree(staging, tick)
        os.mkdir(staging, 0o700)
        tree = staging + b"/" + _TREE.encode()
        os.mkdir(tree, 0o700)
        try:
            _extract(job, fd, manifest, tree, tick)
            _make_the_rest(tree, manifest.contents)
            _compare(doing, survey(tree, tick), manifest.contents)
            _put_in_place(tree, os.fsencode(job.upper))
        except (Unarchivable, ManifestError) as error:
            raise Fault(FaultKind.RESTORE_FAILED, f"{doing}: {error}") from error
        finally:
            _remove_tree(staging, tick)
        return manifest


def _open(archive: Known, stack: ExitStack, tick: Callable[[], None]) -> tuple[int, Manifest]:
    """The archive's file, after its hash and its manifest were found to be what the catalogue says."""
    what = f"archive {archive.sequence} of {archive.snapshot_key} in {archive.store}"
    try:
        with store_errors(f"reading {what}"):
            fd, manifest = _find(archive, what, stack)
            sha256, size = hash_file(fd, tick)
        if (sha256, size) != (archive.sha256, archive.bytes):
            raise Mismatch(
                f"its SHA-256 is {sha256} over {size} bytes, but the catalogue says {archive.sha256} over {archive.bytes}"
            )
        if read_frame(fd) != manifest.contents:
            raise Mismatch("its first frame is not what its manifest says")
        check_manifest(
            manifest,
            sha256=sha256,
            size=size,
            uncompressed=archive.uncompressed_bytes,
            entries=archive.entries,
        )
        source = manifest.contents.source
        if (source.uid, source.snapshot_key, source.chain_id, source.sequence) != (
            archive.uid,
            archive.snapshot_key,
            archive.chain_id,
            archive.sequence,
        ):
            raise Mismatch(f"its manifest says that it is archive {source.sequence} of {source.snapshot_key}")
    except (Mismatch, ManifestError) as error:
        raise Fault(FaultKind.ARCHIVE_CORRUPT, f"{what} is corrupt: {error}; it is left as it is") from error
    return fd, manifest


def _find(archive: Known, what: str, stack: ExitStack) -> tuple[int, Manifest]:
    """Raises `Fault` (all of it is missing), `Mismatch` (half of it is), `ManifestError`, `OSError`."""
    try:
        folder = stack.enter_context(layout.open_folder(Path(archive.store), archive.folder))
    except FileNotFoundError as error:
        raise Fault(
            FaultKind.ARCHIVE_MISSING, f"{what} is not there ({error}); check that the store is mounted"
        ) from error
    try:
        fd = layout.open_archive(folder, archive.sequence)
    except FileNotFoundError as error:
        raise Mismatch("its manifest is there, but not its bytes") from error
    stack.callback(os.close, fd)
    manifest = layout.read_manifest(folder, archive.sequence)
    if manifest is None:
        raise Mismatch("its manifest is missing")
    return fd, manifest


def _read(
    archive: Known,
    fd: int,
    manifest: Manifest,
    tick: Callable[[], None],
    forward: Callable[[bytes], None] | None = None,
) -> None:
    what = f"archive {archive.sequence} of {archive.snapshot_key} in {archive.store}"
    try:
        with store_errors(f"reading {what}"):
            back = read_back(fd, manifest.contents, tick, limit=archive.uncompressed_bytes, forward=forward)
        check_manifest(
            manifest,
            sha256=back.sha256,
            size=back.bytes,
            uncompressed=back.uncompressed_bytes,
            entries=archive.entries,
        )
    except Mismatch as error:
        raise Fault(FaultKind.ARCHIVE_CORRUPT, f"{what} is corrupt: {error}; it is left as it is") from error


class _TarEnded(Exception):
    """tar closed its input; its exit status says why."""


def _extract(job: Restore, fd: int, manifest: Manifest, tree: bytes, tick: Callable[[], None]) -> None:
    pipe = Pipe()
    jail = Stage("tar", _jailed_tar(tree), stdin=pipe.read_end, stdout=subprocess.DEVNULL)
    pipe.close_read()

    def forward(chunk: bytes) -> None:
        view = memoryview(chunk)
        try:
            while view:
                view = view[os.write(pipe.write_end, view) :]
        except BrokenPipeError as error:
            raise _TarEnded from error

    try:
        _read(job.archive, fd, manifest, tick, forward)
    except _TarEnded:
        pass  # its exit status is looked at below
    finally:
        # The end of its input ends tar, whether it has seen all or not. Killing bubblewrap while it still sets its jail
        # up would leave a child of it waiting for ever.
        pipe.close()
        jail.wait()
    if jail.status != 0:
        raise Fault(
            FaultKind.RESTORE_FAILED,
            f"restoring archive {job.archive.sequence} into {job.key}: {jail.describe()}; the archive is good: "
            f"check the space on the disk of {job.staging}",
        )


def _jailed_tar(tree: bytes) -> list[str | bytes]:
    tar = os.path.realpath(tool_path(TAR))
    command: list[str | bytes] = [tool_path(BWRAP), "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    # Not --unshare-all: in a user namespace of its own tar could not give files to any other owner.
    command += ["--unshare-cgroup-try", "--new-session", "--die-with-parent", "--clearenv", "--setenv", "LC_ALL", "C"]
    command += ["--ro-bind", "/usr/lib", "/usr/lib", "--ro-bind-try", "/usr/lib64", "/usr/lib64"]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--ro-bind", tar, tar]
    for folder in _LIBRARY_FOLDERS:
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    command += ["--bind", tree, "/tree", "--chdir", "/tree", "--cap-drop", "ALL"]
    for capability in _CAPABILITIES:
        command += ["--cap-add", capability]
    command += [tar, "--extract", "--file=-", "--blocking-factor=256", "--numeric-owner", "--same-owner"]
    command += ["--same-permissions", *TAR_XATTR_OPTIONS]
    return command


def _make_the_rest(tree: bytes, contents: Contents) -> None:
    """Deletion marks, device nodes and opaque folders. The parents' times are put back: mknod changes them."""
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for path in map(decode_path, contents.deletions):
            _make_node(root, path, stat.S_IFCHR, 0)
        for device in contents.devices:
            path = decode_path(device.path)
            kind = stat.S_IFBLK if device.block else stat.S_IFCHR
            _make_node(root, path, kind, os.makedev(device.major, device.minor), device)
        for path in map(decode_path, contents.opaque):
            with open_parent(root, path + b"/." if path else b".") as (folder, _):
                os.setxattr(folder, b"trusted.overlay.opaque", b"y")
    finally:
        os.close(root)


def _make_node(root: int, path: bytes, kind: int, number: int, device: DeviceNode | None = None) -> None:
    with open_parent(root, path) as (parent, leaf):
        before = os.fstat(parent)
        os.mknod(leaf, kind, number, dir_fd=parent)
        if device is not None:
            os.chown(leaf, device.uid, device.gid, dir_fd=parent, follow_symlinks=False)
            os.chmod(leaf, device.mode, dir_fd=parent)
            os.utime(leaf, ns=(device.mtime_ns, device.mtime_ns), dir_fd=parent, follow_symlinks=False)
        os.utime(parent, ns=(before.st_atime_ns, before.st_mtime_ns))


def _compare(doing: str, found: Survey, contents: Contents) -> None:
    """The layer that was made is, entry by entry, the one that was archived."""
    made = (
        found.digest.entries,
        found.digest.content_bytes,
        found.digest.hexdigest(),
        sorted(map(encode_path, found.deletions)),
        sorted(map(encode_path, found.opaque)),
        sorted(found.devices, key=lambda device: device.path),
    )
    archived = (
        contents.entries,
        contents.content_bytes,
        contents.tree,
        sorted(contents.deletions),
        sorted(contents.opaque),
        sorted(contents.devices, key=lambda device: device.path),
    )
    if made != archived:
        raise Fault(
            FaultKind.RESTORE_FAILED,
            f"{doing}: the restored tree has {made[0]} entries with {made[1]} bytes and is not the archived one "
            f"({archived[0]} with {archived[1]}); does the file system keep extended attributes and nanoseconds?",
        )


def _put_in_place(tree: bytes, upper: bytes) -> None:
    """On the disk first; then swap. What was in `upper` (an empty layer) is then in staging, to be removed."""
    for path in (tree, upper):
        if not stat.S_ISDIR(os.stat(path, follow_symlinks=False).st_mode):
            raise NotADirectoryError(f"{os.fsdecode(path)} is no folder")
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        sync_file_system(fd)
    finally:
        os.close(fd)
    exchange(tree, upper)
    for parent in (os.path.dirname(upper), os.path.dirname(tree)):
        fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _remove_tree(path: bytes, tick: Callable[[], None]) -> None:
    """Remove a staging folder (ours by its name) and all below it, following no link."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    stack = [(fd, b"", _remove_leaves(fd))]
    try:
        while stack:
            folder, name, deeper = stack[-1]
            if deeper:
                child = os.open(deeper[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                stack.append((child, deeper.pop(), _remove_leaves(child)))
                continue
            os.close(stack.pop()[0])
            tick()
            if stack:
                os.rmdir(name, dir_fd=stack[-1][0])
    finally:
        for folder, _, _ in stack:
            os.close(folder)
    os.rmdir(path)


def _remove_leaves(folder: int) -> list[bytes]:
    """Remove everything in the folder but folders; the names of those."""
    with os.scandir(folder) as listing:
        entries = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in listing]
    for name, is_folder in entries:
        if not is_folder:
            os.unlink(name, dir_fd=folder)
    return [name for name, is_folder in entries if is_folder]
