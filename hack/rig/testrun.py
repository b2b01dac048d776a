"""``hack/test``: all tests against an environment of their own, then a check that nothing was left on the machine.

``hack/test unit`` runs what needs neither root nor services. Anything else on the command line goes to pytest.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from rig import binaries
from rig.environment import Environment
from rig.leaks import RUN_VARIABLE, Footprint, settled_leaks
from rig.paths import CHECKOUT, cache_home, environment_id
from rig.progress import say

UNIT_FOLDERS = ("tests/unit", "tests/property", "tests/rig")
WORKERS = "2"
FURTHER_PLUGINS = "PERDURE_TEST_CNI_DIRS"
"""Folders of CNI plugins that the client is tested with besides the distribution's, separated by colons."""
LEAKED = 20
"""Exit code when every test passed but something was left on the machine; pytest itself uses 0 to 5."""

HELP = """\
usage: hack/test [pytest arguments]     all tests, on services that are set up for them and removed afterwards
       hack/test unit [pytest arguments]   only the tests that need neither root nor services
To run some tests again and again on services that stay: eval "$(hack/env up)", then pytest."""


def main(arguments: list[str]) -> int:
    """Entry point of ``hack/test``."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(HELP)
        return 0
    began = time.monotonic()
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        code = _unit(arguments[1:]) if arguments[:1] == ["unit"] else _all(arguments)
    except (RuntimeError, OSError) as error:
        say(f"hack/test: {error}")
        code = 1
    say(f"==> hack/test: {'passed' if code == 0 else f'FAILED (code {code})'} in {time.monotonic() - began:.0f} s")
    return code


def _unit(arguments: Sequence[str]) -> int:
    folders = [folder for folder in UNIT_FOLDERS if (CHECKOUT / folder).is_dir()]
    return _pytest([*folders, "-m", "not root and not env", *arguments], os.environ)


def _all(arguments: Sequence[str]) -> int:
    if os.geteuid() != 0:
        raise RuntimeError("the whole suite needs root (mounts, namespaces, containers); without root: hack/test unit")
    token = secrets.token_hex(8)
    before = Footprint.take()
    directory = Path(tempfile.mkdtemp(prefix="perdure-", dir="/var/tmp"))
    environment = Environment(directory)
    try:
        environment.up()
        (plugins,) = {path.parent for path in binaries.ensure(binaries.CNI_PLUGINS).values()}
        temporary = directory / "tmp"
        temporary.mkdir(mode=0o1777)
        variables = {
            **os.environ,
            **environment.variables(),
            "PATH": environment.search_path(),
            "TMPDIR": str(temporary),
            RUN_VARIABLE: token,
            FURTHER_PLUGINS: os.pathsep.join(filter(None, (str(plugins), os.environ.get(FURTHER_PLUGINS)))),
        }
        # Of its own, because below TMPDIR the paths that pytest makes are too long for unix sockets (107 bytes).
        code = _pytest([f"--basetemp={directory / 'p'}", *arguments], variables)
        if code != 0:
            _keep_logs(environment)
    finally:
        environment.down()
        shutil.rmtree(directory, ignore_errors=True)
    folders = (directory, environment.run_directory)
    leaks = settled_leaks(before, own=directory, run_token=token, folders=folders)
    for line in leaks:
        say(f"LEAKED {line}")
    if not leaks:
        say("==> leak check: nothing was left on the machine")
    return LEAKED if leaks and code == 0 else code


def _pytest(arguments: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run pytest in the checkout, on two workers unless the caller says otherwise; returns its exit code."""
    chosen = any(argument.startswith(("-n", "--numprocesses", "--pdb")) for argument in arguments)
    parallel = [] if chosen else ["-n", WORKERS, "--dist", "loadgroup"]
    command = [sys.executable, "-m", "pytest", *parallel, *arguments]
    seed = variables.get("PYTHONHASHSEED") or str(secrets.randbelow(2**32))
    say(f"==> PYTHONHASHSEED={seed}: all workers see sets in the same order, each run in another")
    process = subprocess.Popen(command, cwd=CHECKOUT, env={**variables, "PYTHONHASHSEED": seed})
    try:
        return process.wait()
    except BaseException:
        # An interrupt lets fixtures end the services that they started; a plain SIGTERM would leave them running.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def _keep_logs(environment: Environment) -> None:
    """Copy the services' logs out of the environment before it goes, over those of the last failed run."""
    target = cache_home() / f"test-logs-{environment_id(CHECKOUT)}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for log in environment.run_directory.glob("*.log"):
        shutil.copy(log, target)
    say(f"==> the services' logs are kept in {target}")


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
