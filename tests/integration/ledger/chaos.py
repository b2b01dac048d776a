"""`hack/chaos ports` and `hack/chaos ledger`, on a PostgreSQL of their own, with code 1 and the seed at the first fault.

ports: ports of a node are reserved, moved and given back while whoever does it is killed: no number is ever two runtimes',
lost or left behind. ledger: processes that are paused, killed and told a wrong time compete for clean-ups: none is done too
early, twice, under a lost lease or without its intent.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from tests.integration.ledger.contest.play import Contest
from tests.integration.ledger.contest.play import play as play_contest
from tests.integration.ledger.port_cycles import play as play_ports

from rig.postgres import Postgres
from rig.progress import say


def main(arguments: list[str]) -> int:
    """Run; the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.what == "ledger" and options.cases < options.runtimes:
        parser.error(
            f"--cases: each of the {options.runtimes} runtimes is cleaned up once at least; give --runtimes as well"
        )
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    began = time.monotonic()
    with _postgres() as (directory, postgres):
        try:
            counts = asyncio.run(_play(options, directory, postgres))
        except ExceptionGroup as failures:
            wrong = failures.subgroup(AssertionError)
            if wrong is None:
                raise
            for failure in wrong.exceptions:
                say(f"hack/chaos: FAILED: {failure}")
            return 1
        except AssertionError as failure:
            say(f"hack/chaos: FAILED: {failure}")
            return 1
    told = ", ".join(f"{number} {event}" for event, number in counts.most_common())
    nothing = {
        "ports": "0 shared, 0 left behind",
        "ledger": "0 stale writes, 0 stale or double effects, 0 too early, 0 intents without an end",
    }
    say(f"==> {told} in {time.monotonic() - began:.0f} s; {nothing[options.what]}")
    return 0


async def _play(options: argparse.Namespace, directory: Path, postgres: Postgres) -> Counter[str]:
    if options.what == "ports":
        say(f"==> {options.cycles} lives by {options.holders} holders, seed {options.seed}")
        return await play_ports(postgres.url, cycles=options.cycles, holders=options.holders, seed=options.seed)
    say(
        f"==> {options.cases} clean-ups of {options.runtimes} runtimes by {options.holders} holders, seed {options.seed}"
    )
    contest = Contest(postgres.url, directory, options.runtimes, options.cases, options.holders, options.seed, tell=say)
    return await play_contest(contest)


@contextmanager
def _postgres() -> Iterator[tuple[Path, Postgres]]:
    directory = Path(tempfile.mkdtemp(prefix="perdure-chaos-", dir="/var/tmp"))
    postgres = Postgres(directory / "data", directory / "s", directory / "run")
    try:
        postgres.start()
        yield directory, postgres
    finally:
        postgres.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hack/chaos", description=__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    ports = what.add_parser("ports", help="ports of a node, by holders that are killed at any instant")
    ports.add_argument("--cycles", type=int, default=10_000, help="lives of runtimes (default: %(default)s)")
    ports.add_argument("--holders", type=int, default=8, help="processes at a time (default: %(default)s)")
    ledger = what.add_parser("ledger", help="clean-ups, by processes that are paused, killed and told a wrong time")
    ledger.add_argument("--runtimes", type=int, default=4_000, help="default: %(default)s")
    ledger.add_argument("--cases", type=int, default=10_000, help="clean-ups in all (default: %(default)s)")
    ledger.add_argument("--holders", type=int, default=3, help="processes at a time (default: %(default)s)")
    for parser_ in (ports, ledger):
        parser_.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="to repeat a run")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
