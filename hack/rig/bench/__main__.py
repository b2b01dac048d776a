"""The command line of ``hack/bench``: choose a benchmark, run it, print its table, write its JSON.

It exits with 0 when the benchmark ran, whatever the figures are.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

import structlog

from perdure.network.cni.errors import CniError
from perdure.reconcile.ports.errors import PortError
from rig.bench import ledger, network, start
from rig.bench.results import Row, render_json
from rig.paths import CHECKOUT
from rig.progress import say

RESULTS = CHECKOUT / "bench-results"
Measured = tuple[list[Row], str]
"""Rows for the file, and the table that is printed."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One name of the command line. ``run`` takes a folder, a count and whether to be quick; ``profile`` all but the last."""

    about: str
    run: Callable[[Path | None, int, bool], Coroutine[None, None, Measured]]
    profile: Callable[[Path | None, int], Coroutine[None, None, Measured]]
    n: int
    quick_n: int


BENCHMARKS = {
    "ledger": Benchmark(
        "state changes at 50 clients, a sweep, questions over a million operations, SQL of idle processes, --help",
        lambda directory, n, quick: ledger.run(directory, n, quick=quick),
        ledger.run_profile,
        ledger.DEFAULT_N,
        ledger.QUICK_N,
    ),
    "network": Benchmark(
        "start, crash and delete with a network; bursts, costs: against ctr with the same plugins, none, and lean Pods",
        lambda directory, n, quick: network.run(directory, n, quick=quick),
        network.run_profile,
        network.DEFAULT_N,
        network.QUICK_N,
    ),
    "start": Benchmark(
        "apply, crash, stop, resume, delete; bursts, idle, restart: against ctr on the same containerd",
        lambda directory, n, quick: start.run(directory, n, quick=quick),
        start.run_profile,
        start.DEFAULT_N,
        start.QUICK_N,
    ),
}


def main(arguments: list[str]) -> int:
    """Entry point of ``hack/bench``."""
    options = _parser().parse_args(arguments)
    if options.name is None:
        print("\n".join(f"{name:<12}{benchmark.about}" for name, benchmark in BENCHMARKS.items()))
        return 0
    benchmark = BENCHMARKS[options.name]
    n = options.n or (benchmark.quick_n if options.quick else benchmark.n)
    directory = options.dir.resolve() if options.dir else None
    file = RESULTS / f"{options.name}{'-profile' if options.profile else ''}.json"
    if options.profile:
        measuring = benchmark.profile(directory, n)
    elif options.name == "ledger":
        measuring = ledger.run(directory, n, quick=options.quick, history_rows=options.rows)
    else:
        measuring = benchmark.run(directory, n, options.quick)
    _say_only_warnings()
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # ctr is forked beside a gRPC client; the child only execs
    failed = False
    try:
        rows, table = asyncio.run(_until_terminated(measuring))
        RESULTS.mkdir(exist_ok=True)
        file.write_text(render_json(rows))
        print(table, end="")
        say(f"==> {file}")
    except* (RuntimeError, OSError, PortError, CniError) as errors:
        failed = True
        for error in _leaves(errors):
            say(f"hack/bench {options.name}: {error}")
    return 1 if failed else 0


def _say_only_warnings() -> None:
    """Of the adapters that the benchmark calls itself, and on stderr: stdout is for the table."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


async def _until_terminated(measuring: Coroutine[None, None, Measured]) -> Measured:
    """SIGTERM and Ctrl-C end it: everything is removed. Another one changes nothing: removal is not broken off."""
    task = asyncio.ensure_future(measuring)

    def end() -> None:
        if not task.cancelling():
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end)
    try:
        return await task
    except asyncio.CancelledError as error:
        raise RuntimeError("ended by a signal; everything was removed") from error


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hack/bench",
        description="Measures Perdure beside what one would use otherwise, on an environment of its own. Needs root.",
        epilog="Without a name: lists the benchmarks. Results: bench-results/NAME.json.",
    )
    parser.add_argument("name", nargs="?", choices=sorted(BENCHMARKS))
    parser.add_argument(
        "--n",
        type=_count,
        help=f"single operations (default: ledger {ledger.DEFAULT_N}, start {start.DEFAULT_N}, network {network.DEFAULT_N})",
    )
    parser.add_argument("--quick", action="store_true", help="only to see that it works: 10 and less")
    parser.add_argument("--rows", type=_count, help="ledger: operations that questions are asked of (default: 1000000)")
    parser.add_argument("--profile", action="store_true", help="show where the time goes, step by step, instead")
    parser.add_argument("--dir", type=Path, help="new or empty folder for the environment, removed afterwards")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
