"""Where the rig keeps things: the checkout, the per-user cache and the short folders for unix sockets.

Called by every other module of the rig, so that no path is put together twice.
"""

import hashlib
import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
"""The clone that this code runs from."""

RUN_ROOT = Path("/run/perdure-env")
"""Parent of every environment's runtime folder. Short, because a unix socket's path ends at 107 bytes (unix(7))."""

DIRECTORY_FILE = "directory"
"""In each environment's runtime folder: names the folder that the environment is kept in."""

OWNER_FILE = "perdure-environment"
"""Marks a folder as one of ours, so that ``down`` never empties a folder that somebody named by mistake."""

DEFAULT_ENVIRONMENT = CHECKOUT / ".perdure"
"""``hack/env`` without ``--dir``. Ignored by git."""


def cache_home() -> Path:
    """The user's cache for everything that is built or downloaded once and shared by all clones."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "perdure"


def environment_id(directory: Path) -> str:
    """Eight hex digits that stand for one environment's folder in names of sockets, cgroups and namespaces."""
    return hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:8]


def run_directory(directory: Path) -> Path:
    """The runtime folder (sockets, pid files, runc state) of the environment kept in ``directory``."""
    return RUN_ROOT / environment_id(directory)


def system_path(path: str) -> str:
    """``path`` (a PATH value) as the machine means it: without environments' own commands, with the sbin folders.

    A wrapper in an environment's ``bin`` must never be taken for the program that it wraps; and a plain user's shell
    often lacks ``/usr/sbin``.
    """
    parts = [part for part in path.split(os.pathsep) if not (Path(part).parent / OWNER_FILE).exists()]
    return os.pathsep.join([*parts, *(extra for extra in ("/usr/sbin", "/sbin") if extra not in parts)])
