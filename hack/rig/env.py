"""``hack/env up|down|status``: the command line around ``rig.environment``.

Only ``export`` lines (of ``up``) and the table (of ``status``) go to stdout.
"""

import argparse
import sys
import time
from pathlib import Path

from rig.environment import Environment
from rig.exports import render_exports
from rig.paths import DEFAULT_ENVIRONMENT
from rig.progress import say

NOT_RUNNING = 3
"""Exit code of ``status`` when a part does not run, as systemctl has it."""


def main(arguments: list[str]) -> int:
    """Entry point of ``hack/env``."""
    options = _parser().parse_args(arguments)
    environment = Environment(
        options.dir.resolve(),
        durable=getattr(options, "fsync", False),
        engine_programs=getattr(options, "engine", None),
    )
    try:
        match options.verb:
            case "up":
                return _up(environment, operator=options.operator)
            case "down":
                environment.down(keep_data=options.keep_data)
                say(f"==> {environment.directory}: down")
                return 0
            case _:
                return _status(environment)
    except (RuntimeError, OSError) as error:
        say(f"hack/env {options.verb}: {error}")
        return 1


def _up(environment: Environment, *, operator: bool) -> int:
    began = time.monotonic()
    environment.up(operator=operator)
    say(f"==> {environment.directory}: up in {time.monotonic() - began:.1f} s")
    print(render_exports(environment.variables(), environment.directory / "bin"), end="")
    return 0


def _status(environment: Environment) -> int:
    parts = environment.parts()
    if not parts:
        print(f"{environment.directory}: down")
        return NOT_RUNNING
    complete = True
    print(f"{'PART':<26}{'PID':<10}ADDRESS")
    for daemon, address in parts:
        process = daemon.identity()
        optional = daemon.name == environment.operator.name
        complete = complete and (process is not None or optional)
        print(f"{daemon.name:<26}{process.pid if process else '-':<10}{address if process else 'not running'}")
    print(f"logs: {environment.run_directory}")
    return 0 if complete else NOT_RUNNING


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hack/env",
        description="A Kubernetes API server, containerd and PostgreSQL of your own, on this machine, for Perdure.",
        epilog='Use it as: eval "$(hack/env up)"',
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="start what does not run; prints export lines on stdout")
    up.add_argument("--operator", action="store_true", help="also start `perdure standalone` and wait for /readyz")
    up.add_argument("--fsync", action="store_true", help="let etcd and PostgreSQL fsync, as for measurements")
    up.add_argument("--engine", type=Path, metavar="DIR", help="take containerd, its shim and ctr from this folder")
    down = verbs.add_parser("down", help="end everything and remove what it left")
    down.add_argument("--keep-data", action="store_true", help="keep the cluster's, engine's and database's content")
    status = verbs.add_parser("status", help=f"what runs; exit code {NOT_RUNNING} if a part does not")
    for verb in (up, down, status):
        verb.add_argument("--dir", type=Path, default=DEFAULT_ENVIRONMENT, help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
