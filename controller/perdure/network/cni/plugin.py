"""One execution of one plugin: found, started in a session of its own, given a deadline, and understood.

Called by `client`. A plugin runs as root and changes the node's network, so it gets nothing of this process but what the
specification names, and at its deadline it is killed with all the processes of its session's group.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from perdure.network.cni.child import Child
from perdure.network.cni.documents import Malformed, decode
from perdure.network.cni.errors import Execution, PluginError, PluginFault

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where plugins find iptables, nft and the like."""
MAX_OUTPUT_BYTES = 1024 * 1024
KEPT_ERROR_BYTES = 2048
PIPE_BYTES = 65536
"""The capacity of a pipe (pipe(7)): one read empties it."""


class _ErrorMembers(msgspec.Struct):
    """The specification's error object; both are left out by sloppy plugins, though never both."""

    code: int | None = None
    msg: str | None = None
    details: str | None = None


@dataclass(frozen=True, slots=True)
class Runner:
    """`launcher` is put before every plugin's command line, and has to end in the plugin's own process.

    `("nsenter", "--net=/run/netns/lab")` runs plugins in another network namespace, for tests and for environments that
    share a machine; `("setpriv", "--pdeathsig", "KILL", "--")` lets no plugin outlive this process, whose successor
    could else undo an ADD while that is still being done.
    """

    plugin_dirs: tuple[Path, ...]
    deadline_seconds: float
    launcher: tuple[str, ...] = ()

    async def run(self, execution: Execution, document: bytes) -> bytes:
        """What the plugin wrote after it was given `document` and succeeded. Raises `PluginError`.

        Cancelled: the plugin is killed before this returns. Its work is then half done, and a DEL has to follow.
        """
        path = self._find(execution)
        command = (*self.launcher, str(path))
        with _Output(MAX_OUTPUT_BYTES) as output, _Output(KEPT_ERROR_BYTES) as errors, _readable(document) as given:
            try:
                child = Child(command, self._environment(execution), given, output.writer, errors.writer)
            except OSError as error:
                raise _not_started(execution, command[0], error) from error
            status = await self._wait(execution, child, output)
            output.read()
            errors.read()
            return _understood(execution, status, output, errors)

    def _find(self, execution: Execution) -> Path:
        """The first executable file of the name. Raises `PluginError`."""
        name = execution.plugin
        places = ", ".join(map(str, self.plugin_dirs)) or "no folder"
        if "/" in name or name in ("", ".", ".."):
            raise PluginError(execution, PluginFault.MISSING, f"{name!r} is not a file name", advice="correct its type")
        found = [folder / name for folder in self.plugin_dirs if (folder / name).is_file()]
        for path in found:
            if os.access(path, os.X_OK):
                return path
        if found:
            text = f"{found[0]} is not executable"
            raise PluginError(execution, PluginFault.NOT_EXECUTABLE, text, advice="correct its mode")
        text = f"failed to find plugin {name} in {places}"
        advice = "install it, or name the folder that has it"
        raise PluginError(execution, PluginFault.MISSING, text, advice=advice)

    def _environment(self, execution: Execution) -> dict[str, str]:
        """Specification, section 2, parameters. An absent parameter is an empty variable in libcni as well."""
        return {
            "PATH": PATH,
            "CNI_COMMAND": execution.command,
            "CNI_CONTAINERID": execution.container_id,
            "CNI_NETNS": execution.netns,
            "CNI_IFNAME": execution.ifname,
            "CNI_ARGS": execution.args,
            "CNI_PATH": os.pathsep.join(map(str, self.plugin_dirs)),
        }

    async def _wait(self, execution: Execution, child: Child, output: _Output) -> int:
        """The exit status of a plugin that ended by itself; another is killed first. Raises `PluginError`."""
        ending = asyncio.ensure_future(child.ended.wait())
        flood = asyncio.ensure_future(output.overflowing.wait())
        try:
            await asyncio.wait((ending, flood), timeout=self.deadline_seconds, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                return child.status()
            if flood.done():
                raise _too_much(execution)
            text = f"it did not end within {self.deadline_seconds:g} s and was killed"
            raise PluginError(execution, PluginFault.TIMED_OUT, text, advice="a DEL cleans up before the next try")
        finally:
            ending.cancel()
            flood.cancel()
            await child.close()


class _Output:
    """A pipe that a plugin writes to, of which the last `limit` bytes are kept.

    It is not read to its end: a process that the plugin left behind could keep it open for ever. What the plugin itself
    wrote is in the pipe when it has ended, and one more read gets it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self.overflowing = asyncio.Event()

    def __enter__(self) -> Self:
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        asyncio.get_running_loop().add_reader(self._reader, self.read)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._reader)
        os.close(self._reader)
        os.close(self.writer)

    def read(self) -> None:
        """Take what is in the pipe now."""
        try:
            self._kept += os.read(self._reader, PIPE_BYTES)
        except BlockingIOError:
            return
        if len(self._kept) > self._limit:
            self.overflowing.set()
            del self._kept[: -self._limit]

    @property
    def data(self) -> bytes:
        return bytes(self._kept).strip()

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")


@contextlib.contextmanager
def _readable(document: bytes) -> Iterator[int]:
    """A file in memory at its start: other than a pipe it never blocks, whether or not the plugin reads it."""
    descriptor = os.memfd_create("cni-stdin", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, document)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _understood(execution: Execution, status: int, output: _Output, errors: _Output) -> bytes:
    """What an ended plugin wrote. Raises `PluginError` for anything but success."""
    if output.overflowing.is_set():
        raise _too_much(execution)
    if status == 0:
        return output.data
    said = f": {errors.text}" if errors.text else ""
    if status < 0:
        raise PluginError(execution, PluginFault.CRASHED, f"it was killed by {signal.Signals(-status).name}{said}")
    if not output.data:
        raise PluginError(execution, PluginFault.CRASHED, f"it ended with status {status} and no error object{said}")
    try:
        members = decode(output.data, _ErrorMembers)
    except Malformed:
        members = _ErrorMembers()
    if members.code is None and members.msg is None:
        text = f"it ended with status {status} and wrote what is no error object: {output.text[:200]!r}{said}"
        raise PluginError(execution, PluginFault.GARBAGE, text)
    text = "; ".join(part for part in (members.msg, members.details) if part)
    raise PluginError(execution, PluginFault.REFUSED, text, code=members.code or 0)


def _not_started(execution: Execution, file: str, error: OSError) -> PluginError:
    fault = PluginFault.NOT_EXECUTABLE if error.errno in (errno.EACCES, errno.ENOEXEC) else PluginFault.NOT_STARTED
    return PluginError(execution, fault, f"cannot run {file}: {error.strerror}")


def _too_much(execution: Execution) -> PluginError:
    text = f"it wrote more than {MAX_OUTPUT_BYTES} bytes"
    return PluginError(execution, PluginFault.GARBAGE, text, advice="no result is that long; look into the plugin")
