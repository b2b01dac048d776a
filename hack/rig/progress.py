"""What the rig tells the person who waits for it. Everything goes to stderr: stdout belongs to ``export`` lines.

Called by all parts of the rig that take longer than a blink.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

TICK_SECONDS = 15.0


class CommandError(RuntimeError):
    """A command that the rig ran ended badly; the message holds the command, its exit code and its last output."""


def say(message: str) -> None:
    """Print one line for the person who waits."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def ticking(what: str) -> Iterator[None]:
    """Say that ``what`` begins, that it still goes on (every 15 s), and how long it took."""
    done = threading.Event()
    began = time.monotonic()

    def tick() -> None:
        while not done.wait(TICK_SECONDS):
            say(f"    … still {what} ({time.monotonic() - began:.0f} s)")

    say(f"==> {what}")
    ticker = threading.Thread(target=tick, name="progress", daemon=True)
    ticker.start()
    try:
        yield
    finally:
        done.set()
        ticker.join()
    say(f"    {what}: done in {time.monotonic() - began:.1f} s")


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str = "",
) -> str:
    """Run a command to its end and return its stdout.

    ``timeout`` is in seconds; ``env`` replaces the whole environment.
    Raises CommandError when the command fails, cannot be started or takes too long.
    """
    shown = " ".join(str(part) for part in argv)
    try:
        result = subprocess.run(
            [str(part) for part in argv],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"`{shown}` did not end within {timeout:.0f} s") from error
    except OSError as error:
        raise CommandError(f"`{shown}` could not be started: {error}") from error
    if result.returncode != 0:
        tail = "\n".join((result.stdout + result.stderr).strip().splitlines()[-20:])
        raise CommandError(f"`{shown}` ended with code {result.returncode}:\n{tail}")
    return result.stdout
