"""What an earlier agent left attached, brought into what this one keeps in memory. Called once, by the composition root."""

from __future__ import annotations

from perdure.network.attachments import Attachments
from perdure.network.claims import Claims
from perdure.network.cni.cache import Cache
from perdure.network.cni.errors import CacheUnusable


def recall(attachments: Attachments, cache: Cache, claims: Claims) -> None:
    """Blocking: called in a thread, before anybody else has them. Raises `OSError` for an unusable run folder."""
    attachments.load()
    try:
        claims.recall(cache.records(), attachments.all())
    except CacheUnusable as error:
        raise OSError(str(error)) from error
