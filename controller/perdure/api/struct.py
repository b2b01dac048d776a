"""The base of every shape that is parsed from, or written to, an object of the API server."""

from __future__ import annotations

import msgspec


class Struct(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base of all API shapes: frozen, camelCase on the wire, unset fields left out."""
