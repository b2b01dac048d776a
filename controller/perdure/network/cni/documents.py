"""JSON objects whose members stay the bytes they were: what plugins and administrators wrote is passed on unaltered.

Used wherever this package reads JSON that somebody else wrote.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

Document = dict[str, msgspec.Raw]

T = TypeVar("T")


class Malformed(ValueError):
    """The bytes are not the JSON that was expected."""


def decode(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """`data` as a `kind`. Raises `Malformed`, also for what is nested too deeply or is not UTF-8."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(str(error)) from error


def decode_document(data: bytes | msgspec.Raw) -> Document:
    """One JSON object, all of it well-formed. Raises `Malformed`."""
    decode(data, object)  # members that stay bytes are not looked at closely below
    return decode(data, Document)


def raw(value: object) -> msgspec.Raw:
    """A value of ours as a member of a document."""
    return msgspec.Raw(msgspec.json.encode(value))


def encode(document: Document) -> bytes:
    return msgspec.json.encode(document)
