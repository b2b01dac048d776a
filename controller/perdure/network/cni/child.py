"""A child process that leads a session of its own, watched through a pidfd and ended with all of its process group.

Started by `plugin`. A pidfd (pidfd_open(2)) needs no watcher thread, which asyncio starts for every child and which costs
more than a plugin; and since nobody else reaps the child, its pid is still its own whenever it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence

REAP_SECONDS = 5.0
"""A killed process is gone at once, unless the kernel holds it in an uninterruptible call."""


class Child:
    """Made where an event loop runs; `close` has to follow. Raises `OSError` where the command cannot be run.

    Starting it holds the loop until the child has executed the command, as asyncio's own way of starting one does.
    """

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], stdin: int, stdout: int, stderr: int
    ) -> None:
        self._process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, start_new_session=True, cwd="/"
        )
        try:
            self._descriptor = os.pidfd_open(self._process.pid)
        except OSError:
            self._kill()
            self._process.wait()
            raise
        self.ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._descriptor, self._note)

    def status(self) -> int:
        """The exit status once it has ended; negative: the signal that killed it."""
        return self._process.wait()

    async def close(self) -> None:
        """Kill what has not ended, with its children, and reap it. Cancelled: killed all the same.

        A child of its own that made yet another session escapes; none of the known plugins does that.
        """
        try:
            if not self.ended.is_set():
                self._kill()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REAP_SECONDS):
                        await self.ended.wait()
            if self.ended.is_set():
                self._process.wait()
        finally:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _note(self) -> None:
        self.ended.set()
        asyncio.get_running_loop().remove_reader(self._descriptor)
