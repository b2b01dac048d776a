"""`hack/chaos`: the crash matrix with random kills and failures, for as long as one wants. A failing case is printed so
that it can be told again: the story's name, and the calls at which it was killed or failed."""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from collections.abc import Sequence

import structlog
from tests.crash.matrix import Story, fail_points, kill_points, tell
from tests.crash.networked_stories import EVERY_STORY

MOST_KILLS = 4
MOST_CALLS_BETWEEN_KILLS = 60
REPORT_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 if any case failed."""
    parser = argparse.ArgumentParser(prog="hack/chaos", description=__doc__)
    parser.add_argument("what", choices=["matrix"])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--seed", type=int, default=None, help="to repeat a run; without it one is drawn and printed")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    print(f"seed {seed}", file=sys.stderr)
    return matrix(random.Random(seed), options.seconds)


def matrix(draw: random.Random, seconds: float) -> int:
    """Random cases until the time is over."""
    ends = {story.name: tell(story) for story in EVERY_STORY}
    began = told = time.monotonic()
    tried = failed = 0
    while (now := time.monotonic()) - began < seconds:
        story = draw.choice(EVERY_STORY)
        expected = ends[story.name]
        kills = [draw.choice(kill_points(expected))]
        for _ in range(draw.randrange(MOST_KILLS)):
            kills.append(kills[-1] + draw.randint(1, MOST_CALLS_BETWEEN_KILLS))
        fails = draw.choice(fail_points(expected)) if draw.random() < 0.5 else None
        tried += 1
        problem = _problem(story, kills, fails, expected.summary)
        if problem is not None:
            failed += 1
            print(f"FAILED {story.name!r} kill_at={kills} fail_at={fails}: {problem}")
        if now - told > REPORT_SECONDS:
            told = now
            print(f"{tried} cases, {failed} failed", file=sys.stderr)
    print(f"{tried} cases in {seconds:.0f} s, {failed} failed")
    return 1 if failed else 0


def _problem(story: Story, kills: Sequence[int], fails: int | None, expected: dict[str, object]) -> str | None:
    try:
        end = tell(story, kill_at=kills, fail_at=fails)
    except AssertionError as error:
        return str(error)
    wrong = {key: value for key, value in end.summary.items() if value != expected[key]}
    return f"another end: {wrong}" if wrong else None


if __name__ == "__main__":
    sys.exit(main())
