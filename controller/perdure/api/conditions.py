"""Condition types and the fixed list of reasons: messages are for people, reasons for machines and alerts."""

from __future__ import annotations

from enum import StrEnum


class ConditionType(StrEnum):
    SCHEDULED = "Scheduled"
    IMAGE_READY = "ImageReady"
    DATA_READY = "DataReady"
    NETWORK_READY = "NetworkReady"
    RESOURCES_APPLIED = "ResourcesApplied"
    READY = "Ready"
    PRESERVED = "Preserved"
    DEGRADED = "Degraded"


class Truth(StrEnum):
    """`status` of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Reason(StrEnum):
    """Why a condition is what it is."""

    # all is well
    BOUND = "Bound"
    PRESENT = "Present"
    RUNNING = "Running"
    RESTORED = "Restored"
    CONFIGURED = "Configured"
    ATTACHED = "Attached"
    APPLIED = "Applied"
    ARCHIVED = "Archived"
    NOTHING_TO_PRESERVE = "NothingToPreserve"
    AS_EXPECTED = "AsExpected"
    # on the way
    IN_PROGRESS = "InProgress"
    MIN_READY = "MinReadySeconds"
    BACK_OFF = "CrashLoopBackOff"
    STOPPING = "Stopping"
    RESTORE_PENDING = "RestorePending"
    PENDING_RESTART = "PendingRestart"
    PROBE_PENDING = "ProbePending"
    # stopped, by wish or by itself
    STOP_REQUESTED = "StopRequested"
    REMOVE_REQUESTED = "RemoveRequested"
    EXPIRED = "Expired"
    CLEANUP_REQUESTED = "CleanupRequested"
    DELETING = "Deleting"
    COMPLETED = "Completed"
    EXITED = "Exited"
    # waiting for a part
    ENGINE_UNAVAILABLE = "EngineUnavailable"
    LEDGER_UNAVAILABLE = "LedgerUnavailable"
    ARCHIVE_NOT_REACHABLE = "ArchiveNotReachable"
    ORPHAN_PENDING = "OrphanPending"
    NOT_OURS = "NotOurs"
    NOT_BOUND = "NotBound"
    UNSCHEDULABLE = "Unschedulable"
    PORT_TAKEN = "PortTaken"
    PORT_RANGE_EXHAUSTED = "PortRangeExhausted"
    PORTS_PENDING = "PortsPending"
    NAMESPACE_UNREADABLE = "NamespaceUnreadable"
    # a person must decide
    DATA_MISSING = "DataMissing"
    IMAGE_CHANGED = "ImageChanged"
    ARCHIVE_NOT_FOUND = "ArchiveNotFound"
    ARCHIVE_CORRUPT = "ArchiveCorrupt"
    RESTORE_FAILED = "RestoreFailed"
    MASS_ABSENCE = "MassAbsence"
    IDENTITY_CHANGED = "IdentityChanged"
    SNAPSHOT_CONFLICT = "SnapshotConflict"
    # the spec is wrong
    INVALID_SPEC = "InvalidSpec"
    IMAGE_NOT_FOUND = "ImageNotFound"
    PULL_UNSUPPORTED = "PullUnsupported"
    PLATFORM_MISMATCH = "PlatformMismatch"
    COMMAND_NOT_FOUND = "CommandNotFound"
    USER_NOT_FOUND = "UserNotFound"
    ENV_SOURCE_MISSING = "EnvSourceMissing"
    ENV_SOURCE_FORBIDDEN = "EnvSourceForbidden"
    POD_SECURITY = "PodSecurityViolation"
    # the node's network is not set up as it must be
    NO_CNI_CONFIGURATION = "NoCNIConfiguration"
    CNI_CONFIGURATION_INVALID = "CNIConfigurationInvalid"
    CNI_PLUGIN_MISSING = "CNIPluginMissing"
    BRIDGE_CONFLICT = "BridgeConflict"
    # something failed and is tried again
    PROBE_FAILED = "ProbeFailed"
    START_FAILED = "StartFailed"
    STOP_TIMED_OUT = "StopTimedOut"
    NETWORK_FAILED = "NetworkFailed"
    NETWORK_RETRYING = "NetworkRetrying"
    ADDRESS_POOL_EXHAUSTED = "AddressPoolExhausted"
    NO_ADDRESS = "NoAddress"
    STORE_FULL = "StoreFull"
    STORE_UNAVAILABLE = "StoreUnavailable"
    ARCHIVE_FAILED = "ArchiveFailed"
    PURGE_FAILED = "PurgeFailed"
    JOURNAL_FAILED = "JournalFailed"
    INTERNAL_ERROR = "InternalError"
