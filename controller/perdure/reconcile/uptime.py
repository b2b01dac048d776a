"""A clock that nobody can set: how long the machine has been up, and since which boot. Used where a wrong wall clock must not
make anything happen too early.

Source: clock_gettime(2), CLOCK_BOOTTIME (it counts sleep, too); random(4), /proc/sys/kernel/random/boot_id.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

from perdure.plan.uptime import Uptime

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def uptime() -> Uptime:
    return Uptime(_boot(), boottime())


def boottime() -> float:
    """Seconds since boot. What is promised to others (a lease) runs out while this machine sleeps, too: the monotonic
    clock stands still meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def _boot() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()
