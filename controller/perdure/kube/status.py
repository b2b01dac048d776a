"""What is to be sent so that a status becomes another one: pure functions from two statuses to a merge patch.

Called by the adapters that write a status. Keys that the schema of this version does not know are left alone; keys that
it knows and that are to go are sent as null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from perdure.api.node import NodeStatus
from perdure.api.runtime import Condition, LastExit, RequestStatus, RuntimeStatus, status_to_json

_KNOWN_KEYS = tuple(field.encode_name for field in msgspec.structs.fields(RuntimeStatus))
_KEYS_OF_PARTS = {
    "lastExit": tuple(field.encode_name for field in msgspec.structs.fields(LastExit)),
    "lastRequest": tuple(field.encode_name for field in msgspec.structs.fields(RequestStatus)),
}
"""Objects within a status: a merge would leave keys of the old one in the new one."""


def merge_conditions(old: Sequence[Condition], new: Sequence[Condition], now: str) -> tuple[Condition, ...]:
    """`new`, with `lastTransitionTime` as the API conventions have it: when `status` last changed.

    A condition whose `status` is what it was keeps its time, even if reason or message changed; the others get `now`
    (RFC 3339). Conditions that are not in `new` are dropped.
    Source: kubernetes/community, sig-architecture/api-conventions.md "Typical status properties".
    """
    before = {condition.type: condition for condition in old}

    def since(condition: Condition) -> str:
        known = before.get(condition.type)
        if known is not None and known.status == condition.status and known.last_transition_time:
            return known.last_transition_time
        return condition.last_transition_time or now

    return tuple(msgspec.structs.replace(condition, last_transition_time=since(condition)) for condition in new)


def status_patch(old: RuntimeStatus, new: RuntimeStatus, now: str) -> dict[str, Any]:
    """The `status` part of a merge patch that makes `old` into `new`; empty if they are the same.

    An `old` of nothing but defaults may stand for a stored status that could not be parsed, so then every known key
    that `new` lacks is removed too.
    """
    merged = msgspec.structs.replace(new, conditions=merge_conditions(old.conditions, new.conditions, now))
    before, after = status_to_json(old), status_to_json(merged)
    if before == after:
        return {}
    patch = _difference(before, after)
    if not before:
        patch |= {key: None for key in _KNOWN_KEYS if key not in after}
    for part, keys in _KEYS_OF_PARTS.items():
        if isinstance(patch.get(part), dict):
            patch[part] = dict.fromkeys(keys) | patch[part]
    return patch


def node_status_patch(old: NodeStatus, new: NodeStatus, now: str) -> dict[str, Any]:
    """The same for a RuntimeNode; the answer to the last request stays, unless there is another one."""
    merged = msgspec.structs.replace(
        new,
        conditions=merge_conditions(old.conditions, new.conditions, now),
        last_request=new.last_request or old.last_request,
    )
    before, after = msgspec.to_builtins(old), msgspec.to_builtins(merged)
    return {} if before == after else _difference(before, after)


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return changed | {key: None for key in before if key not in after}
