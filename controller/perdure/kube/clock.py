"""Times as the API server writes them: RFC 3339 in UTC, whole seconds for objects and microseconds for Leases."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> str:
    """`2026-01-31T12:00:00Z`, as metav1.Time."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def now_micro() -> str:
    """`2026-01-31T12:00:00.123456Z`, as metav1.MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
