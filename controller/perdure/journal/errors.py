"""The one error of the node journal, raised by every file of this package."""

from __future__ import annotations

from perdure.api.conditions import Reason
from perdure.reconcile.ports.errors import PortError


class JournalFailed(PortError):
    """The node cannot remember: nothing may be done whose trace would be lost, so the worker waits and tries again."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.JOURNAL_FAILED)
