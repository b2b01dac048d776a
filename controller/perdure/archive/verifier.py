"""Reading an archive back: hash, headers, counts and the digest of its tree, in one pass over the file.

Called by `writer` (on what it just wrote, from the disk), by `extractor` (while tar extracts) and for `verify`.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from types import TracebackType

from perdure.archive.manifest import Contents, Manifest, ManifestError, read_frame
from perdure.archive.stages import ZSTD, Pipe, Stage, tool_path
from perdure.archive.tarstream import BadStream, Stream, entries
from perdure.archive.tree import FOLDER, HARD_LINK, Entry, TreeDigest

_CHUNK = 1 << 20
_DECOMPRESSION_MEMORY = "128MB"


class Mismatch(Exception):
    """The archive is not what it should be; the message says in which respect."""


@dataclass(frozen=True, slots=True)
class ReadBack:
    """What an archive file really is."""

    sha256: str
    bytes: int
    uncompressed_bytes: int


def hash_file(fd: int, tick: Callable[[], None]) -> tuple[str, int]:
    """SHA-256 and size of a file, from its beginning."""
    digest = hashlib.sha256()
    at = 0
    while piece := os.pread(fd, _CHUNK, at):
        digest.update(piece)
        at += len(piece)
        tick()
    return digest.hexdigest(), at


def forget_cached_pages(fd: int) -> None:
    """Drop the (clean) pages of a synced file, so that the next read is a read of the disk."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def read_back(
    fd: int,
    expected: Contents,
    tick: Callable[[], None],
    *,
    limit: int | None = None,
    forward: Callable[[bytes], None] | None = None,
) -> ReadBack:
    """Read the whole archive file and hold it against `expected`.

    `limit`: most bytes that the tar may have. `forward`: gets the tar, chunk by chunk, each after its headers were
    accepted. Raises `Mismatch`, `OSError`.
    """
    try:
        if read_frame(fd) != expected:
            raise Mismatch("its first frame is not what its manifest says")
    except ManifestError as error:
        raise Mismatch(str(error)) from error
    with _Decompression(fd) as decompression:
        stream = Stream(decompression.output, limit, tick, forward)
        try:
            _check_entries(stream, expected)
        except BadStream as error:
            raise Mismatch(decompression.end() or str(error)) from error
        complaint = decompression.end()
        if complaint or not decompression.sha256:
            raise Mismatch(complaint or "zstd stopped before the end of the file")
        return ReadBack(decompression.sha256, decompression.fed, stream.length)


def check_manifest(manifest: Manifest, *, sha256: str, size: int, uncompressed: int, entries: int) -> None:
    """Hold a manifest against what is known elsewhere (the catalogue, or the file). Raises `Mismatch`."""
    for what, says, known in (
        ("hash", manifest.sha256, sha256),
        ("size", manifest.bytes, size),
        ("uncompressed size", manifest.uncompressed_bytes, uncompressed),
        ("number of entries", manifest.contents.entries, entries),
    ):
        if says != known:
            raise Mismatch(f"its manifest says that the {what} is {says}, but it is {known}")


def _check_entries(stream: Stream, expected: Contents) -> None:
    digest = TreeDigest()
    order = _Order()
    for entry in entries(stream):
        order.check(entry)
        digest.add(entry)
        if digest.entries > expected.entries or digest.content_bytes > expected.content_bytes:
            raise BadStream("it holds more than its manifest says")
    if (digest.entries, digest.content_bytes) != (expected.entries, expected.content_bytes):
        raise BadStream(
            f"it holds {digest.entries} entries with {digest.content_bytes} bytes, "
            f"not {expected.entries} with {expected.content_bytes}"
        )
    if digest.hexdigest() != expected.tree:
        raise BadStream("names, owners, modes, sizes, times or attributes in it are not those of its source")


class _Order:
    """Entries come as a sorted walk gives them: then no name comes twice, and nothing comes through a link."""

    def __init__(self) -> None:
        self._open: list[tuple[bytes, bytes]] = []  # folders on the way to the last entry, and the last name in each
        self._files: set[int] = set()  # hashes of the names of files, for hard links; the jail makes up for a collision

    def check(self, entry: Entry) -> None:
        if not entry.name:
            if self._open or entry.kind != FOLDER:
                raise BadStream("its root comes twice or is no folder")
            self._open.append((b"", b""))
            return
        parent, _, leaf = entry.name.rpartition(b"/")
        while self._open and self._open[-1][0] != parent:
            self._open.pop()
        if not self._open or leaf <= self._open[-1][1]:
            raise BadStream(f"{entry.name[:200]!r} comes twice, out of order, or not after its folder")
        self._open[-1] = (parent, leaf)
        if entry.kind == FOLDER:
            self._open.append((entry.name, b""))
        elif entry.kind == HARD_LINK:
            if hash(entry.target) not in self._files:
                raise BadStream(f"{entry.name[:200]!r} is a hard link to what is no earlier entry")
        else:
            self._files.add(hash(entry.name))


class _Decompression:
    """`zstd -dc`, fed from a descriptor by a thread that hashes what it feeds."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._input = Pipe()
        self._output = Pipe()
        self.sha256 = ""
        self.fed = 0
        self._error: OSError | None = None

    def __enter__(self) -> _Decompression:
        command = [tool_path(ZSTD), "-d", "-c", "-q", f"--memory={_DECOMPRESSION_MEMORY}"]
        self._zstd = Stage("zstd", command, stdin=self._input.read_end, stdout=self._output.write_end)
        self._input.close_read()
        self._output.close_write()
        self._feeder = Thread(target=self._feed, name="feeder of zstd", daemon=True)
        self._feeder.start()
        return self

    @property
    def output(self) -> int:
        return self._output.read_end

    def _feed(self) -> None:
        digest = hashlib.sha256()
        try:
            while piece := os.pread(self._fd, _CHUNK, self.fed):
                digest.update(piece)
                self.fed += len(piece)
                view = memoryview(piece)
                while view:
                    view = view[os.write(self._input.write_end, view) :]
            self.sha256 = digest.hexdigest()
        except BrokenPipeError:
            pass  # zstd gave up; its exit status says why
        except OSError as error:
            self._error = error
        finally:
            self._input.close_write()

    def end(self) -> str:
        """Stop reading; why it could not be decompressed, or empty. Raises the `OSError` of reading the file."""
        self._output.close_read()
        self._feeder.join()
        status = self._zstd.wait()
        if self._error is not None:
            raise self._error
        # A reader that stops early makes zstd end by SIGPIPE: then the reader has the reason.
        return "" if status in (0, -signal.SIGPIPE) else self._zstd.describe()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zstd.kill()
        self._output.close()
        self._feeder.join()
