"""Errors that adapters may raise through the ports: what was being done, to what, and what its reader can do next."""

from __future__ import annotations

from perdure.api.conditions import Reason


class PortError(Exception):
    """Something outside did not do what was asked. The message says what was being done, to what, and what to do next.

    `reason` is what the condition shows. `user_error`: only an edit of the spec or of what it names helps.
    `blocks_data`: only a person's decision about data helps. `of_node`: only a change of the node's setup helps; it is
    looked at again as seldom as anything is. Otherwise it is tried again soon.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: Reason,
        user_error: bool = False,
        blocks_data: bool = False,
        of_node: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.user_error = user_error
        self.blocks_data = blocks_data
        self.of_node = of_node


class EngineUnavailable(PortError):
    """The engine did not answer (or answered that it has no such service, which is what a broken one says)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.ENGINE_UNAVAILABLE)


class EngineRefused(PortError):
    """The engine answered, and the answer is no; `reason` says which no."""


class SandboxFailed(PortError):
    """A network could not be made, changed or removed; `reason` says which kind of fault it is."""

    def __init__(self, message: str, *, reason: Reason = Reason.NETWORK_FAILED, of_node: bool = False) -> None:
        super().__init__(message, reason=reason, of_node=of_node)


class PortTaken(SandboxFailed):
    """Somebody else on the node listens on a port that is to lead into a runtime."""

    def __init__(self, name: str, number: int, protocol: str) -> None:
        super().__init__(
            f"port {number}/{protocol} of the node, which is to lead to port {name!r}, is taken by another program; end "
            f"that program (`ss -lptun 'sport = :{number}'` names it) or give {name!r} another hostPort",
            reason=Reason.PORT_TAKEN,
        )
        self.name = name
        self.number = number
        self.protocol = protocol


class PortHeld(PortTaken):
    """A port that is to lead into a runtime still leads into another one of this node, which has given it up."""

    def __init__(self, name: str, number: int, protocol: str, holder: str) -> None:
        super().__init__(name, number, protocol)
        self.args = (
            f"port {number}/{protocol} of the node, which is to lead to port {name!r}, still leads into {holder}, whose "
            "reservation has ended; the node's agent leads it out or removes that network, and this is tried again",
        )


class StoreError(PortError):
    """A store cannot be written or read (`StoreFull`, `StoreUnavailable`), or what was written is not what was read."""


class ArchiveCorrupt(PortError):
    """An archive is not what the catalogue says. It is quarantined: never restored, and removed by nothing but a
    Purge."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.ARCHIVE_CORRUPT, blocks_data=True)


class ArchiveOutdated(PortError):
    """A layer was written since an archive was made of it. The archive is good and stays; the layer needs another one,
    of another sequence."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.ARCHIVE_FAILED)


class LedgerUnavailable(PortError):
    def __init__(self, message: str, *, reason: Reason = Reason.LEDGER_UNAVAILABLE) -> None:
        super().__init__(message, reason=reason)


class LedgerChanged(LedgerUnavailable):
    """What answers is not the ledger of before: it is asked nothing and told nothing until a person has looked."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.IDENTITY_CHANGED)


class RowRefused(PortError):
    """The ledger answers, and never takes a row as it is: the row is at fault, and others are not held up by it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.INTERNAL_ERROR)


class LeaseBusy(PortError):
    """Somebody else works at it. That is no failure: nothing was done, and it is looked at again."""

    def __init__(self, key: str, holder: str, expires_in: float) -> None:
        super().__init__(
            f"taking the lease {key}: {holder} holds it; it is tried again when that lease is given back or has run out",
            reason=Reason.IN_PROGRESS,
        )
        self.holder = holder
        self.expires_in = max(0.0, expires_in)
        """Seconds, if its holder does not renew it."""


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
