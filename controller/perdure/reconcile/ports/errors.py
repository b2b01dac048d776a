"""Errors that adapters may raise through the ports: what was being done, to what, and what its reader can do next."""

from __future__ import annotations

from perdure.api.conditions import Reason


class PortError(Exception):
    """Something outside did not do what was asked. The message says what was being done, to what, and what to do next.

    `reason` is what the condition shows. `user_error`: only an edit of the spec or of what it names helps.
    `blocks_data`: only a person's decision about data helps. Otherwise it is tried again.
    """

    def __init__(self, message: str, *, reason: Reason, user_error: bool = False, blocks_data: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.user_error = user_error
        self.blocks_data = blocks_data


class EngineUnavailable(PortError):
    """The engine did not answer (or answered that it has no such service, which is what a broken one says)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.ENGINE_UNAVAILABLE)


class EngineRefused(PortError):
    """The engine answered, and the answer is no; `reason` says which no."""


class SandboxFailed(PortError):
    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.NETWORK_FAILED)


class StoreError(PortError):
    """A store cannot be written or read (`StoreFull`, `StoreUnavailable`), or what was written is not what was read."""


class ArchiveCorrupt(PortError):
    """An archive is not what the catalogue says. It is quarantined: never deleted, never restored."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.ARCHIVE_CORRUPT, blocks_data=True)


class LedgerUnavailable(PortError):
    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.LEDGER_UNAVAILABLE)


class StaleFence(PortError):
    """Somebody took the lease over: whoever gets this has lost, and observes again before anything else."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.LEDGER_UNAVAILABLE)


class ApiUnavailable(PortError):
    """The API server did not answer, or answered 429 or 5xx."""

    def __init__(self, message: str, reason: Reason = Reason.IN_PROGRESS) -> None:
        super().__init__(message, reason=reason)


class SourceError(PortError):
    """A Secret, ConfigMap or namespace that the spec names is missing or may not be read."""


class StatusConflict(PortError):
    """The object changed since it was read; the newer version will come through the watch."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.IN_PROGRESS)
