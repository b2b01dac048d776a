"""What is known of a thing: it is there, it is proven not there, or nobody knows.

The third value is why this file exists: an error, a timeout or an empty answer of a part that is away must never be
read as "it is gone". Adapters translate their errors into `Unknown` at the edge; destructive steps are planned only
from `Present` and `Absent`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T", covariant=True)


@dataclass(frozen=True, slots=True)
class Present(Generic[T]):
    it: T


@dataclass(frozen=True, slots=True)
class Absent:
    """Proven by an answer of the part that owns the thing, not by silence."""


@dataclass(frozen=True, slots=True)
class Unknown:
    why: str


Certain = Present[T] | Absent | Unknown
