"""Resolves a container's environment: plain values, and those that live in Secrets, ConfigMaps or the object itself.

Values go from the API server into the engine and nowhere else: not into logs, status, ledger, hashes or errors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import TypeVar

from perdure.api.conditions import Reason
from perdure.api.runtime import EnvVar, KeySelector, Runtime
from perdure.reconcile.ports.cluster import Cluster
from perdure.reconcile.ports.engine import ResolvedEnv
from perdure.reconcile.ports.errors import SourceError

_M = TypeVar("_M")

FIELDS = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "metadata.labels",
    "metadata.annotations",
)
"""What `fieldRef` may name; labels and annotations take a key in brackets: `metadata.labels['team']`."""


async def resolve(runtime: Runtime, cluster: Cluster) -> ResolvedEnv:
    """All variables in order; a later one of the same name wins, as in a Pod. Raises `SourceError`, `ApiUnavailable`."""
    secrets: dict[str, Mapping[str, bytes]] = {}
    maps: dict[str, Mapping[str, str]] = {}
    values: dict[str, str] = {}
    for variable in runtime.spec.env:
        value = await _value(variable, runtime, cluster, secrets, maps)
        if value is not None:
            values[variable.name] = value
    return ResolvedEnv(tuple(values.items()))


async def _value(
    variable: EnvVar,
    runtime: Runtime,
    cluster: Cluster,
    secrets: dict[str, Mapping[str, bytes]],
    maps: dict[str, Mapping[str, str]],
) -> str | None:
    source = variable.value_from
    if source is None:
        return variable.value or ""
    if source.secret_key_ref is not None:
        ref = source.secret_key_ref
        if ref.name not in secrets:
            found = await _unless_optional(ref, cluster.secret(runtime.namespace, ref.name))
            secrets[ref.name] = found if found is not None else {}
        raw = secrets[ref.name].get(ref.key)
        if raw is not None:
            return _text(variable, ref, raw)
        _refuse_unless_optional(variable, "Secret", ref, runtime)
        return None
    if source.config_map_key_ref is not None:
        ref = source.config_map_key_ref
        if ref.name not in maps:
            mapping = await _unless_optional(ref, cluster.config_map(runtime.namespace, ref.name))
            maps[ref.name] = mapping if mapping is not None else {}
        text = maps[ref.name].get(ref.key)
        if text is None:
            _refuse_unless_optional(variable, "ConfigMap", ref, runtime)
        return text
    if source.field_ref is not None:
        return _field(variable, source.field_ref.field_path, runtime)
    return ""


async def _unless_optional(ref: KeySelector, reading: Awaitable[_M]) -> _M | None:
    try:
        return await reading
    except SourceError as error:
        if ref.optional and error.reason is Reason.ENV_SOURCE_MISSING:
            return None
        raise


def _text(variable: EnvVar, ref: KeySelector, raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise SourceError(
            f"env {variable.name}: key {ref.key} of Secret {ref.name} is not text, so it cannot be an environment variable",
            reason=Reason.ENV_SOURCE_MISSING,
            user_error=True,
        )
    return text


def _refuse_unless_optional(variable: EnvVar, kind: str, ref: KeySelector, runtime: Runtime) -> None:
    if ref.optional:
        return
    raise SourceError(
        f"env {variable.name}: {kind} {runtime.namespace}/{ref.name} has no key {ref.key}; add it, or set optional: true",
        reason=Reason.ENV_SOURCE_MISSING,
        user_error=True,
    )


def _field(variable: EnvVar, path: str, runtime: Runtime) -> str:
    plain = {
        "metadata.name": runtime.name,
        "metadata.namespace": runtime.namespace,
        "metadata.uid": runtime.uid,
        "spec.nodeName": runtime.node_name or "",
    }
    if path in plain:
        return plain[path]
    for prefix, values in (("metadata.labels['", runtime.labels), ("metadata.annotations['", runtime.annotations)):
        if path.startswith(prefix) and path.endswith("']"):
            return values.get(path[len(prefix) : -2], "")
    raise SourceError(
        f"env {variable.name}: fieldRef {path!r} is none of {', '.join(FIELDS)}",
        reason=Reason.INVALID_SPEC,
        user_error=True,
    )
