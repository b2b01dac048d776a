"""The default seccomp profile: data in `seccomp.json`, made into the form of the OCI spec for one machine type."""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec

from perdure.engine.oci.schema import Seccomp, SeccompArgument, SeccompRule

ALLOW = "SCMP_ACT_ALLOW"
REFUSE = "SCMP_ACT_ERRNO"


class _Condition(msgspec.Struct, frozen=True):
    about: str
    names: tuple[str, ...]
    args: tuple[SeccompArgument, ...] = ()
    action: str = ALLOW
    errno: int | None = None
    only_on: tuple[str, ...] = ()
    not_on: tuple[str, ...] = ()

    def applies_to(self, machine: str) -> bool:
        return machine not in self.not_on and (not self.only_on or machine in self.only_on)


class _Profile(msgspec.Struct, frozen=True):
    about: str
    architectures: dict[str, tuple[str, ...]]
    allow: tuple[str, ...]
    allow_by_machine: dict[str, tuple[str, ...]]
    allow_by_capability: dict[str, tuple[str, ...]]
    conditions: tuple[_Condition, ...]


@cache
def _profile() -> _Profile:
    data = resources.files("perdure.engine.oci").joinpath("seccomp.json").read_bytes()
    return msgspec.json.decode(data, type=_Profile)


@cache
def default_profile(machine: str, capabilities: frozenset[str]) -> Seccomp:
    """The profile for a machine (as `uname -m` says) and a bounding set.

    Conditions on one system call are separate rules: runc joins the arguments of one rule by AND only where their
    indexes differ (libseccomp's limits), and rules of one call by OR.
    """
    profile = _profile()
    allowed = [*profile.allow, *profile.allow_by_machine.get(machine, ())]
    for capability in sorted(capabilities):
        allowed.extend(profile.allow_by_capability.get(capability, ()))
    rules = [SeccompRule(names=tuple(allowed), action=ALLOW)]
    rules += [
        SeccompRule(names=condition.names, action=condition.action, errno_ret=condition.errno, args=condition.args)
        for condition in profile.conditions
        if condition.applies_to(machine)
    ]
    return Seccomp(default_action=REFUSE, architectures=profile.architectures.get(machine, ()), syscalls=tuple(rules))
