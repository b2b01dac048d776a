"""Text on its way to PostgreSQL: whatever Python has as a string is written, so that no text can keep a row from the ledger.

`Database` has every connection of the ledger use this for every string parameter, those within lists included.
"""

from __future__ import annotations

from psycopg.abc import Buffer
from psycopg.types.string import StrDumperUnknown


def storable(text: str) -> str:
    """Text as PostgreSQL takes it: a NUL and a lone surrogate, which it has no way to store, are replaced."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")


class StorableText(StrDumperUnknown):
    """Raises for no string. `Database` sets the encoding of its connections to UTF-8."""

    def dump(self, obj: str) -> Buffer:
        return storable(obj).encode()
