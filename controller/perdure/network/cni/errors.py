"""What can go wrong between this client and a network: raised by every module here, told apart by `retries.classify`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Command(StrEnum):
    """`CNI_COMMAND`."""

    ADD = "ADD"
    CHECK = "CHECK"
    DEL = "DEL"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


class CniError(Exception):
    """The root: the message says what was being done, to what, and what its reader can do."""


class ConfigurationFault(StrEnum):
    """Why a network configuration cannot be used."""

    NO_CONFIGURATION = "no-configuration"
    FOLDER_UNREADABLE = "folder-unreadable"
    FILE_UNREADABLE = "file-unreadable"
    FILE_TOO_LARGE = "file-too-large"
    INVALID_JSON = "invalid-json"
    INVALID_FIELD = "invalid-field"
    INVALID_NAME = "invalid-name"
    INVALID_TYPE = "invalid-type"
    NO_PLUGINS = "no-plugins"
    UNSUPPORTED_VERSION = "unsupported-version"
    NETWORK_NOT_FOUND = "network-not-found"


class ConfigurationError(CniError):
    """The node's network configuration cannot be used until somebody edits it."""

    def __init__(self, fault: ConfigurationFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class InvalidAttachment(CniError):
    """An attachment that no plugin could be asked for: its ids, names or arguments are not what the specification allows."""


class CacheUnusable(CniError):
    """The folder of cached results cannot be read or written."""


class NotCached(CniError):
    """CHECK and repair need the result of the ADD, and there is none that can be read."""


class PluginFault(StrEnum):
    """How an execution of a plugin failed."""

    REFUSED = "refused"
    """It ended with an error object of the specification."""
    MISSING = "missing"
    NOT_EXECUTABLE = "not-executable"
    NOT_STARTED = "not-started"
    TIMED_OUT = "timed-out"
    CRASHED = "crashed"
    """Killed by a signal, or ended with a failure and nothing on standard output."""
    GARBAGE = "garbage"
    """What it wrote is not what the specification asks for: no JSON, not a result, too much, or nothing."""


@dataclass(frozen=True, slots=True)
class Execution:
    """Which execution of a plugin; `container_id` and `netns` are empty for GC, STATUS and VERSION."""

    plugin: str
    command: Command
    network: str
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: str = ""

    def __str__(self) -> str:
        of = f" of {self.container_id}" if self.container_id else ""
        return f"CNI plugin {self.plugin}: {self.command}{of} in network {self.network}"


class PluginError(CniError):
    """A plugin did not do what was asked. `text` is what it said, `code` the specification's (0 where it said none)."""

    def __init__(self, execution: Execution, fault: PluginFault, text: str, *, code: int = 0, advice: str = "") -> None:
        said = f" (code {code})" if fault is PluginFault.REFUSED else ""
        super().__init__(f"{execution} failed: {text}{said}" + (f"; {advice}" if advice else ""))
        self.execution = execution
        self.fault = fault
        self.text = text
        self.code = code
