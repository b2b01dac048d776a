"""The words of the retry table: classes of errors, what helps against them, and what a row of the table is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from perdure.api.conditions import Reason
from perdure.network.cni.errors import Command, PluginError, PluginFault


class ErrorClass(StrEnum):
    """What happened."""

    ALREADY_ATTACHED = "already-attached"
    DUPLICATE_ALLOCATION = "duplicate-allocation"
    POOL_EXHAUSTED = "pool-exhausted"
    HALF_DELETED = "half-deleted"
    NETNS_LOST = "netns-lost"
    BRIDGE_MAC = "bridge-mac"
    """The bridge has an address of zeros: its first ADD was killed before it set one, and its last port was then removed."""
    WRONG_SUBNET = "wrong-subnet"
    NOT_A_BRIDGE = "not-a-bridge"
    MASTER_MISSING = "master-missing"
    BRIDGE_CHANGED = "bridge-changed"
    """A CHECK found the bridge with another MAC than with the ADD, or listened to. It serves as well."""
    ATTACHMENT_DAMAGED = "attachment-damaged"
    RULES_MISSING = "rules-missing"
    CHECK_UNRELIABLE = "check-unreliable"
    TOOL_MISSING = "tool-missing"
    TOOL_BUSY = "tool-busy"
    NO_PRIVILEGE = "no-privilege"
    PLUGIN_MISSING = "plugin-missing"
    PLUGIN_NOT_EXECUTABLE = "plugin-not-executable"
    PLUGIN_CRASHED = "plugin-crashed"
    PLUGIN_TIMEOUT = "plugin-timeout"
    GARBAGE_OUTPUT = "garbage-output"
    INCOMPATIBLE_VERSION = "incompatible-version"
    UNSUPPORTED_FIELD = "unsupported-field"
    CONTAINER_UNKNOWN = "container-unknown"
    INVALID_ENVIRONMENT = "invalid-environment"
    IO_FAILURE = "io-failure"
    DECODING_FAILURE = "decoding-failure"
    INVALID_CONFIGURATION = "invalid-configuration"
    COMMAND_UNSUPPORTED = "command-unsupported"
    """A plugin older than 1.1.0 was asked for STATUS or GC."""
    TRY_AGAIN_LATER = "try-again-later"
    PLUGIN_NOT_AVAILABLE = "plugin-not-available"
    LIMITED_CONNECTIVITY = "limited-connectivity"
    NO_RECORD = "no-record"
    CACHE_UNUSABLE = "cache-unusable"
    UNKNOWN = "unknown"


class Action(StrEnum):
    """What helps. Everything but `STOP` and `IGNORE` is tried again, with growing delays where the first repetition failed."""

    DELETE_THEN_ADD = "delete-then-add"
    DELETE_AGAIN = "delete-again"
    """The same DEL once more; it has removed what stood in its own way."""
    SWEEP_THEN_BACK_OFF = "sweep-then-back-off"
    """Free addresses of attachments that are no more, then wait."""
    RECREATE_NETNS = "recreate-netns"
    """DEL, make the network namespace anew, ADD."""
    REPAIR_BRIDGE = "repair-bridge"
    """Set a hardware address on the bridge in place, then DEL and ADD; a bridge with ports is never deleted."""
    REPAIR_RULES = "repair-rules"
    """`CniClient.repair`: somebody took the rules away, and the interface is well."""
    BACK_OFF = "back-off"
    IGNORE = "ignore"
    STOP = "stop"
    """A person has to change something; the condition's message says what."""


@dataclass(frozen=True, slots=True)
class Row:
    """An error matches where everything that is not None does. `text` is searched for in what the plugin said."""

    kind: ErrorClass
    action: Action
    reason: Reason
    text: re.Pattern[str] | None = None
    codes: tuple[int, ...] | None = None
    faults: tuple[PluginFault, ...] | None = None
    commands: tuple[Command, ...] | None = None

    def matches(self, error: PluginError) -> bool:
        return (
            (self.commands is None or error.execution.command in self.commands)
            and (self.faults is None or error.fault in self.faults)
            and (self.codes is None or (error.fault is PluginFault.REFUSED and error.code in self.codes))
            and (self.text is None or self.text.search(error.text) is not None)
        )


@dataclass(frozen=True, slots=True)
class Classified:
    """`reason` is the condition's; `kind` says more, for its message and for metrics."""

    kind: ErrorClass
    action: Action
    reason: Reason
