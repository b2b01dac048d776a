"""What an earlier agent left attached, brought into what this one keeps in memory. Called once, by the composition root."""

from __future__ import annotations

from msgspec.structs import replace

from perdure.api.names import Uid
from perdure.network.attachments import Attachments
from perdure.network.bridged import bridged
from perdure.network.claims import Claims
from perdure.network.cni.cache import Cache, Record
from perdure.network.cni.configuration import parse
from perdure.network.cni.errors import CacheUnusable, ConfigurationError


def recall(attachments: Attachments, cache: Cache, claims: Claims) -> None:
    """Blocking: called in a thread, before anybody else has them. Raises `OSError` for an unusable run folder."""
    attachments.load()
    try:
        records = cache.records()
    except CacheUnusable as error:
        raise OSError(str(error)) from error
    claims.recall(records, attachments.all())
    for record in records:
        if isinstance(record, Record):
            _place(attachments, record)


def _place(attachments: Attachments, record: Record) -> None:
    """An attachment whose own record names no bridge may have been made by an agent that kept none: the plugins' record has
    the configuration."""
    attached = attachments.get(Uid(record.container_id))
    if attached is None or attached.bridge or not attached.port or attached.network != record.network_name:
        return
    try:
        there = bridged(parse(record.network, f"the cached configuration of {record.container_id}"))
    except (ConfigurationError, ValueError):
        return  # as good as none: nobody can tell which firewall it belongs to
    if there is not None:
        subnets = tuple(str(subnet) for subnet in there.subnets)
        attachments.put(replace(attached, bridge=there.bridge, subnets=subnets))
