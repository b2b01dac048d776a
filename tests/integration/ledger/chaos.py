"""`hack/chaos ports`: ports of a node are reserved, moved and given back on a PostgreSQL of its own while whoever does it is
killed. Ends with code 1 and the seed at the first number that two runtimes have, that is lost or that is left behind."""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import structlog
from tests.integration.ledger.port_cycles import play

from rig.postgres import Postgres
from rig.progress import say


def main(arguments: list[str]) -> int:
    """Run; the exit code."""
    parser = argparse.ArgumentParser(prog="hack/chaos", description=__doc__)
    parser.add_argument("what", choices=["ports"])
    parser.add_argument("--cycles", type=int, default=10_000, help="lives of runtimes (default: %(default)s)")
    parser.add_argument("--holders", type=int, default=8, help="processes at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="to repeat a run")
    options = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    directory = Path(tempfile.mkdtemp(prefix="perdure-ports-", dir="/var/tmp"))
    postgres = Postgres(directory / "data", directory / "s", directory / "run")
    began = time.monotonic()
    try:
        postgres.start()
        say(f"==> {options.cycles} lives by {options.holders} holders, seed {options.seed}")
        counts = asyncio.run(play(postgres.url, cycles=options.cycles, holders=options.holders, seed=options.seed))
    except ExceptionGroup as failures:
        wrong = failures.subgroup(AssertionError)
        if wrong is None:
            raise
        for failure in wrong.exceptions:
            say(f"hack/chaos: FAILED: {failure}")
        return 1
    finally:
        postgres.stop()
        shutil.rmtree(directory, ignore_errors=True)
    told = ", ".join(f"{number} {event}" for event, number in counts.most_common())
    say(f"==> {told} in {time.monotonic() - began:.0f} s; 0 shared, 0 left behind")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
