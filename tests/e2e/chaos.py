"""`hack/chaos kills`: the rounds of `test_kills`, as many as asked for, each from a seed that is printed.

Stops at the first round that does not end as it must, and leaves its environment up for whoever looks into it.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from tests.e2e.harness.api import Api
from tests.e2e.harness.machine import Machine
from tests.e2e.harness.processes import Operator, variables
from tests.e2e.harness.rounds import ACTIVITIES, Arena, play
from tests.e2e.harness.runtimes import Runtime

from rig.environment import Environment
from rig.progress import CommandError, say

NAMESPACE = "chaos"


def main(arguments: list[str]) -> int:
    """Entry point of `hack/chaos`."""
    options = _parser().parse_args(arguments)
    options.activities = options.activities or list(ACTIVITIES)
    signal.signal(signal.SIGTERM, _exit)
    directory = Path(tempfile.mkdtemp(prefix="perdure-chaos-", dir="/var/tmp"))
    environment = Environment(directory)
    kept = False
    try:
        environment.up()
        scratch = Path(tempfile.mkdtemp(prefix="s", dir=directory))
        kept = not _kills(Machine(environment, scratch, Api.of(environment.control_plane)), options)
    except KeyboardInterrupt:
        say("\nhack/chaos: interrupted")
        return 130
    finally:
        if kept:
            say(f"==> it is as it was left; end it with: hack/env down --dir {directory}")
        else:
            environment.down()
            shutil.rmtree(directory, ignore_errors=True)
    return 1 if kept else 0


def _kills(machine: Machine, options: argparse.Namespace) -> bool:
    """Play the rounds; whether all of them ended as they must."""
    site, ledger = machine.new_site(), machine.new_ledger()
    logs = machine.environment.run_directory
    shared = variables(machine.kubeconfig, ledger.url)
    controller = Operator("controller", site.name, logs, shared)
    agent = Operator("agent", site.name, logs, shared | site.options())
    controller.start()
    agent.start()
    machine.kubectl()("create", "namespace", NAMESPACE)
    kubectl = machine.kubectl(NAMESPACE)
    bystander = Runtime(kubectl, machine.api, site, "bystander").apply().wait_ready()
    process = bystander.process()
    arena = Arena(agent, lambda name: Runtime(kubectl, machine.api, site, name), options.seed)
    say(f"==> {options.rounds} rounds of {', '.join(options.activities)}, seed {options.seed}")
    for number in range(options.rounds):
        activity = options.activities[number % len(options.activities)]
        began = time.monotonic()
        try:
            play(arena, activity, number)
            assert bystander.process() == process, "the bystander's main process was restarted"
        except (AssertionError, CommandError, RuntimeError) as error:
            say(f"    round {number} {activity}: FAILED: {error}\n{agent.log_tails()}")
            return False
        say(f"    round {number} {activity}: {time.monotonic() - began:.1f} s")
    for event, times in arena.killed_in.most_common():
        say(f"    killed {times} times after: {event}")
    controller.stop()
    agent.stop()
    return True


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hack/chaos", description="Long random loops on services of their own.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    kills = verbs.add_parser("kills", help="SIGKILL the agent at random instants of what it does")
    kills.add_argument("--rounds", type=int, default=25, help="default: %(default)s")
    kills.add_argument("--seed", type=int, default=random.randrange(2**32), help="to repeat a run")
    kills.add_argument(
        "--activity", dest="activities", action="append", choices=ACTIVITIES, help="may be repeated; default: all"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
