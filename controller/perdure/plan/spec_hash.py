"""Which part of a spec makes another container: a mark over exactly the fields that a container is made from.

The mark is a label of the container: `<what is run>-<limits>`, so that a change of limits, which never restarts
anything, can be told from a change of what is run, which does.
"""

from __future__ import annotations

import hashlib
from functools import cache

import msgspec
import msgspec.structs

from perdure.api.network import Network
from perdure.api.runtime import RuntimeSpec


def _digest(value: object, length: int) -> str:
    return hashlib.sha256(msgspec.json.encode(_said(value), order="deterministic")).hexdigest()[:length]


def _said(value: object) -> object:
    """What differs from the defaults, so that a field that a later version adds leaves every mark as it is.

    By equality: msgspec's own `omit_defaults` goes by identity, which depends on the decoder that made a string.
    """
    if isinstance(value, msgspec.Struct):
        values = ((field, getattr(value, field.name)) for field in _fields(type(value)))
        return {field.encode_name: _said(found) for field, found in values if found != field.default}
    if isinstance(value, tuple):
        return [_said(item) for item in value]
    return value


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(kind)


def spec_mark(spec: RuntimeSpec) -> str:
    """`<16 hex>-<8 hex>`. Names of Secrets are in it, their values are not."""
    what_is_run = (
        spec.command,
        spec.args,
        spec.env,
        spec.working_dir,
        spec.user,
        spec.host_aliases,
        _joined(spec.network),
    )
    return f"{_digest(what_is_run, 16)}-{_digest(spec.resources, 8)}"


def _joined(network: Network) -> Network:
    """What of the network the container itself is made with: its resolver. The rest is made and changed around it."""
    return Network(dns=network.dns)


def same_process(mark: str, other: str) -> bool:
    """Whether the two marks run the same thing, whatever the limits."""
    return mark.partition("-")[0] == other.partition("-")[0]


def reads_sources(spec: RuntimeSpec) -> bool:
    """Whether the environment has values that live in other objects and may change between starts."""
    return any(variable.value_from is not None for variable in spec.env)
