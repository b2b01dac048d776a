"""Resolves a container's environment: plain values, and those that live in Secrets, ConfigMaps or the object itself.

Values go from the API server into the engine and nowhere else: not into logs, status, ledger, hashes or errors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Set
from typing import TypeVar

from perdure.api.conditions import Reason
from perdure.api.runtime import EnvVar, KeySelector, Runtime
from perdure.reconcile.ports.cluster import Cluster
from perdure.reconcile.ports.engine import ResolvedEnv
from perdure.reconcile.ports.errors import SourceError
from perdure.reconcile.ports.exec_limits import (
    POINTER_BYTES,
    STRING_BYTES,
    TOTAL_BYTES,
    too_long,
    too_much,
    variable_bytes,
)

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
    """All variables in order; a later one of the same name wins, as in a Pod. Raises `SourceError`, `ApiUnavailable`;
    `SourceError`, too, for more than any program can be started with, as soon as it is known to be more."""
    sources = _Sources(runtime, cluster)
    values: dict[str, str] = {}
    total = 0
    for variable in runtime.spec.env:
        value = await _value(variable, runtime, sources)
        if value is None:
            continue
        size = variable_bytes(variable.name, value)
        total += size + POINTER_BYTES
        if size > STRING_BYTES:
            raise _invalid(too_long(f"env {variable.name}", size))
        if total > TOTAL_BYTES:
            raise _invalid(too_much(f"the variables up to env {variable.name} take {total} bytes"))
        values[variable.name] = value
    return ResolvedEnv(tuple(values.items()))


def _invalid(why: str) -> SourceError:
    return SourceError(why, reason=Reason.INVALID_SPEC, user_error=True)


class _Sources:
    """The Secrets and ConfigMaps that one spec names, each read once; of each only the keys that it names are kept."""

    def __init__(self, runtime: Runtime, cluster: Cluster) -> None:
        self._namespace = runtime.namespace
        self._cluster = cluster
        named = [variable.value_from for variable in runtime.spec.env if variable.value_from is not None]
        self._secret_keys = _keys_by_name(source.secret_key_ref for source in named)
        self._map_keys = _keys_by_name(source.config_map_key_ref for source in named)
        self._secrets: dict[str, Mapping[str, bytes]] = {}
        self._maps: dict[str, Mapping[str, str]] = {}
        self._kept = 0

    async def secret(self, ref: KeySelector) -> bytes | None:
        """Its value; None if it has no such key, or is an optional one that is not there."""
        if ref.name not in self._secrets:
            found = await _unless_optional(ref, self._cluster.secret(self._namespace, ref.name)) or {}
            wanted = {key: found[key] for key in self._secret_keys[ref.name] & found.keys()}
            self._secrets[ref.name] = wanted
            self._count("Secret", ref.name, sum(map(len, wanted.values())))
        return self._secrets[ref.name].get(ref.key)

    async def config_map(self, ref: KeySelector) -> str | None:
        """As `secret`."""
        if ref.name not in self._maps:
            found = await _unless_optional(ref, self._cluster.config_map(self._namespace, ref.name)) or {}
            wanted = {key: found[key] for key in self._map_keys[ref.name] & found.keys()}
            self._maps[ref.name] = wanted
            self._count("ConfigMap", ref.name, sum(len(text.encode()) for text in wanted.values()))
        return self._maps[ref.name].get(ref.key)

    def _count(self, kind: str, name: str, size: int) -> None:
        """Hundreds of them, of a MiB each, are not held until the last variable is looked at."""
        self._kept += size
        if self._kept > TOTAL_BYTES:
            what = f"what env takes from Secrets and ConfigMaps comes to {self._kept} bytes with {kind} {name}"
            raise _invalid(too_much(what))


def _keys_by_name(refs: Iterable[KeySelector | None]) -> Mapping[str, Set[str]]:
    keys: dict[str, set[str]] = {}
    for ref in refs:
        if ref is not None:
            keys.setdefault(ref.name, set()).add(ref.key)
    return keys


async def _value(variable: EnvVar, runtime: Runtime, sources: _Sources) -> str | None:
    source = variable.value_from
    if source is None:
        return variable.value or ""
    if source.secret_key_ref is not None:
        raw = await sources.secret(source.secret_key_ref)
        if raw is not None:
            return _text(variable, source.secret_key_ref, raw)
        _refuse_unless_optional(variable, "Secret", source.secret_key_ref, runtime)
        return None
    if source.config_map_key_ref is not None:
        text = await sources.config_map(source.config_map_key_ref)
        if text is None:
            _refuse_unless_optional(variable, "ConfigMap", source.config_map_key_ref, runtime)
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
    raise _invalid(f"env {variable.name}: fieldRef {path!r} is none of {', '.join(FIELDS)}")
