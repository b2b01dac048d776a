"""One command of the node's network tools (nft, iptables, ip), run with a deadline. Called by this package's adapters.

A launcher is what is put before the command, such as `ip netns exec NAME`, to run it in another network namespace.
"""

from __future__ import annotations

import asyncio
import os
import signal

from perdure.reconcile.ports.errors import SandboxFailed

DEADLINE_SECONDS = 20.0
"""For one command: milliseconds where the machine is idle; iptables may wait for its lock."""

Launcher = tuple[str, ...]

_ENVIRONMENT = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LC_ALL": "C"}
"""The C locale: `CommandFailed.says` reads messages."""


class CommandFailed(SandboxFailed):
    """A command could not be run, did not end in time (`code` is None) or ended with another code than 0."""

    def __init__(self, message: str, *, code: int | None, said: str) -> None:
        super().__init__(message)
        self.code = code
        self.said = said

    def says(self, text: str) -> bool:
        """Whether the command gave `text`, usually a strerror(3), as its reason."""
        return text in self.said


async def run(
    doing: str,
    *command: str,
    launcher: Launcher = (),
    feed: str = "",
    seconds: float = DEADLINE_SECONDS,
) -> str:
    """What `command` printed. `doing` begins the message of `CommandFailed`. Killed with its children when cancelled."""
    try:
        process = await asyncio.create_subprocess_exec(
            *launcher,
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise _failed(doing, command, f"cannot be run: {error.strerror}", None) from error
    try:
        async with asyncio.timeout(seconds):
            printed, said = await process.communicate(feed.encode())
    except TimeoutError as error:
        raise _failed(doing, command, f"did not end within {seconds:g} seconds", None) from error
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())
    if process.returncode != 0:
        raise _failed(doing, command, said.decode("utf-8", "replace").strip(), process.returncode)
    return printed.decode("utf-8", "replace")


_ADVICE = (
    ("Operation not permitted", "the agent needs CAP_NET_ADMIN (and CAP_SYS_ADMIN) in this network namespace"),
    ("Unable to initialize Netlink socket", "this kernel has no nf_tables (CONFIG_NF_TABLES)"),
    ("Operation not supported", "this kernel misses a part of nf_tables (CONFIG_NF_TABLES_BRIDGE, CONFIG_NFT_MASQ)"),
    ("cannot be run", "install the Debian package that has it"),
)


def _failed(doing: str, command: tuple[str, ...], said: str, code: int | None) -> CommandFailed:
    ended = said if code is None else f"ended with code {code}: {said[-800:] or 'it said nothing'}"
    advice = next((f"; {what}" for text, what in _ADVICE if text in said), "")
    return CommandFailed(f"{doing}: {command[0]} {ended}{advice}", code=code, said=said)
