"""Child processes of one job (tar, zstd, the jail): started, watched, and judged by exit status and by what they said."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import subprocess
from collections.abc import Sequence
from threading import Thread
from typing import Final

TOOLS_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": TOOLS_PATH, "LC_ALL": "C", "TZ": "UTC"}
_PIPE_BYTES = 1 << 20
_KEPT_OUTPUT = 8 << 10
_LISTEN_SECONDS = 5.0

TAR, ZSTD, BWRAP = "tar", "zstd", "bwrap"
PACKAGES = {TAR: "tar", ZSTD: "zstd", BWRAP: "bubblewrap"}
"""Debian package of each tool."""


def missing_tools() -> list[str]:
    """Packages to install before archives can be made and restored."""
    return [package for tool, package in PACKAGES.items() if shutil.which(tool, path=TOOLS_PATH) is None]


def tool_path(tool: str) -> str:
    """Raises `FileNotFoundError` with the package's name."""
    path = shutil.which(tool, path=TOOLS_PATH)
    if path is None:
        raise FileNotFoundError(f"{tool} is not installed (Debian package {PACKAGES[tool]})")
    return path


def tool_version(tool: str) -> str:
    shown = subprocess.run(
        [tool_path(tool), "--version"], env=_ENVIRONMENT, capture_output=True, timeout=30, check=True
    )
    return shown.stdout.decode(errors="replace").partition("\n")[0].strip()


class Stage:
    """One child process. What it says on stderr is kept up to 8 KiB and read to the end, so that it never blocks."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | bytes],
        *,
        stdin: int,
        stdout: int,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, pass_fds=pass_fds, env=_ENVIRONMENT
        )
        self._said = b""
        self._listener = Thread(target=self._listen, name=f"stderr of {name}", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        pipe = self._process.stderr
        assert pipe is not None
        with pipe:
            while piece := os.read(pipe.fileno(), 64 << 10):
                self._said = (self._said + piece)[:_KEPT_OUTPUT]

    def ended(self, timeout: float) -> bool:
        """Wait at most so many seconds for its end (by pidfd: `Popen.wait` would sleep up to 50 ms too long)."""
        if self._process.returncode is not None:
            return True
        fd = os.pidfd_open(self._process.pid)
        try:
            return bool(select.select([fd], [], [], timeout)[0])
        finally:
            os.close(fd)

    def wait(self) -> int:
        """The exit status."""
        status = self._process.wait()
        self._listener.join(_LISTEN_SECONDS)
        return status

    @property
    def said(self) -> str:
        """After `wait`: its stderr."""
        return self._said.decode(errors="backslashreplace").strip()

    @property
    def status(self) -> int:
        """After `wait`: 0, or why it ended (negative: by which signal)."""
        return self._process.wait()

    def kill(self) -> None:
        """End it and wait. Does nothing to one that ended."""
        self._process.kill()
        self._process.wait()
        # A child of its own may hold stderr for longer; it dies with this job's pid namespace at the latest.
        self._listener.join(_LISTEN_SECONDS)

    def describe(self) -> str:
        """After `wait`: name, status and words, for a message."""
        return f"{self.name} ended with status {self.status}: {self.said[:1000] or 'no message'}"


class Pipe:
    """A pipe of 1 MiB (the most that the kernel gives without privilege): half the system calls of a default one."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def close_read(self) -> None:
        if self.read_end >= 0:
            os.close(self.read_end)
            self.read_end = -1

    def close_write(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        self.close_read()
        self.close_write()
