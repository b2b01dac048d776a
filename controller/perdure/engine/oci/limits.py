"""A runtime's `resources` as cgroup limits, for version 1 and 2."""

from __future__ import annotations

from perdure.api.conditions import Reason
from perdure.api.quantity import InvalidQuantity, parse_bytes, parse_millicores
from perdure.api.runtime import Resources as ResourceSpec
from perdure.engine.oci.schema import Cpu, DeviceRule, Memory, Pids, Resources
from perdure.reconcile.ports.errors import EngineRefused

PERIOD_MICROSECONDS = 100_000
MINIMUM_QUOTA = 1_000
"""Smallest cfs quota that the kernel takes, microseconds (sched/core.c)."""
MINIMUM_SHARES = 2
MAXIMUM_SHARES = 262_144


def cgroup_limits(resources: ResourceSpec, *, swap_accounting: bool) -> Resources:
    """Limits at start: memory without swap, a CPU quota, CPU shares from the request, a process count.

    All devices are refused here; the runtime adds its own few (null, zero, full, random, urandom, tty, pts) as the OCI
    spec says. Raises `EngineRefused(InvalidSpec)` for a quantity that is none.
    """
    try:
        memory = parse_bytes(resources.limits.memory)
        limit = parse_millicores(resources.limits.cpu)
        request = parse_millicores(resources.requests.cpu)
    except InvalidQuantity as error:
        raise EngineRefused(
            f"cannot make the container: in `resources`, {error}", reason=Reason.INVALID_SPEC, user_error=True
        ) from error
    return Resources(
        devices=(DeviceRule(allow=False, access="rwm"),),
        memory=Memory(limit=memory, swap=memory if swap_accounting else None),
        cpu=Cpu(
            shares=min(MAXIMUM_SHARES, max(MINIMUM_SHARES, request * 1024 // 1000)),
            quota=max(MINIMUM_QUOTA, limit * PERIOD_MICROSECONDS // 1000),
            period=PERIOD_MICROSECONDS,
        ),
        pids=Pids(limit=resources.limits.pids),
    )
