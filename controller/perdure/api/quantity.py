"""Kubernetes quantities (`500m`, `512Mi`) as integers. Format: k8s.io/apimachinery/pkg/api/resource/quantity.go."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

_SUFFIXES: dict[str, int | Fraction] = {
    "": 1,
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "E": 10**18,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
    "Ei": 2**60,
}
_PATTERN = re.compile(
    r"^([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:([eE][+-]?[0-9]{1,3})|(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei))?$"
)


class InvalidQuantity(ValueError):
    """The text is no quantity; the message repeats it and shows the form."""


def _exact(text: str) -> Fraction:
    match = _PATTERN.match(text)
    if match is None or len(text) > 32:
        raise InvalidQuantity(f"{text[:40]!r} is not a quantity such as 500m, 2 or 512Mi")
    number, exponent, suffix = match.groups()
    return Fraction(Decimal(number + (exponent or ""))) * _SUFFIXES[suffix or ""]


def parse_bytes(text: str | int) -> int:
    """A quantity in bytes, rounded up. Raises `InvalidQuantity`."""
    return -(-_exact(str(text)) // 1)


def parse_millicores(text: str | int) -> int:
    """A CPU quantity in thousandths of a core, rounded up. Raises `InvalidQuantity`."""
    return -(-(_exact(str(text)) * 1000) // 1)
