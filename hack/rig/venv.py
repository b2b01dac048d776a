"""Makes the virtual environment that the scripts in ``hack/`` run in, with every package pinned by hash.

Called by ``hack/bootstrap.sh`` with the machine's own Python, so it imports nothing but the standard library.
"""

import fcntl
import shutil
import sys
from pathlib import Path

from rig.progress import CommandError, run, say, ticking

COMPLETE = "complete"
"""Written last: a folder without it is the rest of an interrupted installation."""

INSTALL_SECONDS = 1800.0


def ensure(target: Path, lock_file: Path) -> None:
    """Make ``target`` a virtual environment with the packages of ``lock_file``, unless it is one already.

    Several clones may ask at once: one installs, the others wait. Raises CommandError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with ticking("waiting for another clone that installs the same Python packages"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / COMPLETE).exists():
            _install(target, lock_file)


def _install(target: Path, lock_file: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    say(f"==> {target}: once per lock file, about a minute and 500 MB of disk")
    with ticking(f"installing the Python packages of {lock_file.name}"):
        run([sys.executable, "-m", "venv", target], timeout=INSTALL_SECONDS)
        # fmt: off
        run([target / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet",
             "--no-compile", "--no-deps", "--require-hashes", "--requirement", lock_file], timeout=INSTALL_SECONDS)
        # fmt: on
    (target / COMPLETE).touch()


def main(arguments: list[str]) -> int:
    """``python -m rig.venv TARGET LOCK_FILE``."""
    target, lock_file = (Path(argument) for argument in arguments)
    try:
        ensure(target, lock_file)
    except (CommandError, OSError) as error:
        say(f"the Python packages cannot be installed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
