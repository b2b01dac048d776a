"""`hack/chaos network`: runtimes get networks and lose them, in a network namespace of its own, while a fifth of all plugin
executions fail. Ends with code 1 if one gets none, if anything is left, or if a connection of a neighbour does not live."""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import time
from types import FrameType

import structlog
from tests.integration.network.own_node import own_node
from tests.integration.network.starts import Outcome, play

from rig.progress import say

SHOWN = 20


def main(arguments: list[str]) -> int:
    """Run; the exit code."""
    parser = argparse.ArgumentParser(prog="hack/chaos", description=__doc__)
    parser.add_argument("what", choices=["network"])
    parser.add_argument("-n", "--n", type=int, default=1000, help="lives of runtimes (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(2**32), help="of who stays how long"
    )
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        say("hack/chaos: networks need root")
        return 1
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    signal.signal(signal.SIGTERM, _exit_on_signal)
    began = time.monotonic()
    say(f"==> {options.n} lives, seed {options.seed}")
    try:
        with own_node() as node:
            outcome = play(node, total=options.n, seed=options.seed)
    except ExceptionGroup as failures:
        for failure in failures.exceptions:
            say(f"hack/chaos: FAILED: {failure!r}")
        return 1
    say(f"==> faults: {_listed(outcome.told)}")
    say(f"==> failed steps that were tried again: {_listed(outcome.failures)}")
    say(
        f"==> {outcome.attached} of {options.n} attached, {outcome.leaking} left addresses to be swept, "
        f"{len(outcome.left)} traces are left, {outcome.words} words between neighbours, "
        f"in {time.monotonic() - began:.0f} s"
    )
    return _judged(outcome, options.n)


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    """So that the node is taken down on the way out."""
    sys.exit(128 + number)


def _judged(outcome: Outcome, wanted: int) -> int:
    for line in (*outcome.lost, *outcome.left)[:SHOWN]:
        say(f"hack/chaos: FAILED: {line}")
    return 0 if outcome.attached == wanted and not outcome.lost and not outcome.left else 1


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in sorted(counts.items())) or "none"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
