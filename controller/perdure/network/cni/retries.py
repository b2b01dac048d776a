"""Which errors of plugins mean what, and what helps: one table, read from its top.

`classify` decides nothing else; the network's provider acts on it, and shows `reason` in a condition. When it is tried again
is the loop's to say, as for every other failure (`perdure.reconcile.retries`).
Texts are those of the reference plugins 1.1.1 (Debian 12) to 1.9.1; codes are the specification's, section 5.
"""

from __future__ import annotations

import re

from perdure.api.conditions import Reason
from perdure.network.cni.error_classes import Action, Classified, ErrorClass, Row
from perdure.network.cni.errors import (
    CacheUnusable,
    CniError,
    Command,
    ConfigurationError,
    InvalidAttachment,
    NotCached,
    PluginError,
    PluginFault,
)


def _texts(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


ADD, CHECK, DEL = (Command.ADD,), (Command.CHECK,), (Command.DEL,)


def _again(
    kind: ErrorClass,
    reason: Reason,
    text: re.Pattern[str] | None = None,
    faults: tuple[PluginFault, ...] | None = None,
) -> tuple[Row, ...]:
    """What may have left any half of its work behind: undone before it is done anew, and a DEL is its own undoing."""
    return (
        Row(kind, Action.DELETE_THEN_ADD, reason, text, faults=faults, commands=ADD),
        Row(kind, Action.DELETE_AGAIN, reason, text, faults=faults, commands=DEL),
        Row(kind, Action.BACK_OFF, reason, text, faults=faults),
    )


TABLE: tuple[Row, ...] = (
    Row(ErrorClass.PLUGIN_MISSING, Action.STOP, Reason.CNI_PLUGIN_MISSING, faults=(PluginFault.MISSING,)),
    Row(ErrorClass.PLUGIN_NOT_EXECUTABLE, Action.STOP, Reason.CNI_PLUGIN_MISSING, faults=(PluginFault.NOT_EXECUTABLE,)),
    *_again(ErrorClass.PLUGIN_TIMEOUT, Reason.NETWORK_RETRYING, faults=(PluginFault.TIMED_OUT,)),
    *_again(ErrorClass.GARBAGE_OUTPUT, Reason.NETWORK_RETRYING, faults=(PluginFault.GARBAGE,)),
    # iptables and its kin, inside whichever plugin calls them
    *_again(
        ErrorClass.TOOL_BUSY,
        Reason.NETWORK_RETRYING,
        _texts("xtables lock", "Resource temporarily unavailable", "text file busy"),
    ),
    Row(
        ErrorClass.TOOL_MISSING,
        Action.STOP,
        Reason.CNI_PLUGIN_MISSING,
        _texts(r"executable file not found in \$PATH", "neither iptables nor ip6tables is usable"),
    ),
    Row(
        ErrorClass.NO_PRIVILEGE,
        Action.STOP,
        Reason.NETWORK_FAILED,
        _texts("operation not permitted", "permission denied"),
    ),
    # bridge and other plugins that make an interface
    Row(
        ErrorClass.ALREADY_ATTACHED,
        Action.DELETE_THEN_ADD,
        Reason.NETWORK_RETRYING,
        _texts(
            r"container veth name provided \(\S+\) already exists",
            r'container veth name \("\S+"\) peer provided \("\S+"\) already exists',
            r"failed to rename (macvlan|ipvlan) to \S+ file exists",
        ),
        commands=ADD,
    ),
    Row(
        ErrorClass.NOT_A_BRIDGE,
        Action.STOP,
        Reason.BRIDGE_CONFLICT,
        _texts("already exists but is not a bridge"),
    ),
    Row(
        ErrorClass.WRONG_SUBNET,
        Action.STOP,
        Reason.BRIDGE_CONFLICT,
        _texts("already has an IP address different from"),
    ),
    Row(ErrorClass.BRIDGE_MAC, Action.REPAIR_BRIDGE, Reason.NETWORK_RETRYING, _texts("could not set bridge's mac")),
    Row(
        ErrorClass.MASTER_MISSING,
        Action.STOP,
        Reason.CNI_CONFIGURATION_INVALID,
        _texts('failed to lookup master "', "^Link not found$", "no default route interface found"),
        commands=(Command.ADD, Command.CHECK),
    ),
    # host-local
    Row(
        ErrorClass.DUPLICATE_ALLOCATION,
        Action.DELETE_THEN_ADD,
        Reason.NETWORK_RETRYING,
        _texts("duplicate allocation is not allowed"),
        commands=ADD,
    ),
    Row(
        ErrorClass.POOL_EXHAUSTED,
        Action.SWEEP_THEN_BACK_OFF,
        Reason.ADDRESS_POOL_EXHAUSTED,
        _texts("no IP addresses available in range set", r"requested IP address \S+ is not available in range set"),
        commands=ADD,
    ),
    Row(
        ErrorClass.INVALID_CONFIGURATION,
        Action.STOP,
        Reason.CNI_CONFIGURATION_INVALID,
        _texts(
            "no IP ranges specified",
            "too small to allocate from",
            r"invalid range set \d+",
            r"range set \d+ overlaps with",
            r"requested ip \S+ is subnet's gateway",
            "failed to load netconf",
            "failed to parse (network configuration|config)",
            "must be called as a? ?chained plugin",
            "missing prevResult from earlier plugin",
            r"Invalid (container|host) port number",
            "(rate|burst) is set, (rate|burst) must also be set",
        ),
    ),
    # network namespaces
    Row(
        ErrorClass.NETNS_LOST,
        Action.RECREATE_NETNS,
        Reason.NETWORK_RETRYING,
        _texts(r"failed to Statfs \S+ no such file", "unknown FS magic on"),
    ),
    Row(ErrorClass.NETNS_LOST, Action.RECREATE_NETNS, Reason.NETWORK_RETRYING, codes=(8,)),
    Row(
        ErrorClass.PLUGIN_MISSING,
        Action.STOP,
        Reason.CNI_PLUGIN_MISSING,
        _texts('failed to find plugin "[^"]*" in path'),
    ),
    # rules
    Row(
        ErrorClass.HALF_DELETED,
        Action.DELETE_AGAIN,
        Reason.NETWORK_RETRYING,
        _texts(
            "chain '?CN[I-][^ ]* does not exist",
            "No chain/target/match by that name",
            "could not teardown ipv[46] dnat",
        ),
        commands=DEL,
    ),
    Row(
        ErrorClass.CHECK_UNRELIABLE,
        Action.IGNORE,
        Reason.NETWORK_RETRYING,
        _texts(r"could not check ipv6 dnat: chain \S+ not found"),
        commands=CHECK,
    ),
    Row(
        ErrorClass.RULES_MISSING,
        Action.REPAIR_RULES,
        Reason.NETWORK_RETRYING,
        _texts(
            "could not check ipv4 dnat",
            "could not check ipv6 dnat",
            r"expected \S* ?rule .* not found",
            "missing hostport rules in",
            "failed to find qdisc",
        ),
        commands=CHECK,
    ),
    Row(
        ErrorClass.BRIDGE_CHANGED,
        Action.IGNORE,
        Reason.NETWORK_RETRYING,
        _texts(r"Bridge interface \S+ (Mac|configured Promisc Mode \S+) doesn't match"),
        commands=CHECK,
    ),
    Row(
        ErrorClass.ATTACHMENT_DAMAGED,
        Action.DELETE_THEN_ADD,
        Reason.NETWORK_RETRYING,
        _texts(
            "CNI (created|veth created)",
            r"interface (name )?\S+ not found",
            r"interface name in prevResult: \S+ not found",
            "doesn't match",
            "cannot find container link",
            "failed to (match addr|find gateway)",
            "expected route",
            "failed to find address added by container",
        ),
        commands=CHECK,
    ),
    # the specification's own codes
    Row(
        ErrorClass.COMMAND_UNSUPPORTED,
        Action.IGNORE,
        Reason.NETWORK_RETRYING,
        _texts("missing containerID", "unknown CNI_COMMAND", "does not allow (STATUS|GC)"),
        commands=(Command.STATUS, Command.GC),
    ),
    Row(ErrorClass.INCOMPATIBLE_VERSION, Action.STOP, Reason.CNI_CONFIGURATION_INVALID, codes=(1,)),
    Row(ErrorClass.UNSUPPORTED_FIELD, Action.STOP, Reason.CNI_CONFIGURATION_INVALID, codes=(2,)),
    Row(ErrorClass.CONTAINER_UNKNOWN, Action.IGNORE, Reason.NETWORK_RETRYING, codes=(3,), commands=DEL),
    Row(ErrorClass.CONTAINER_UNKNOWN, Action.DELETE_THEN_ADD, Reason.NETWORK_RETRYING, codes=(3,)),
    Row(ErrorClass.INVALID_ENVIRONMENT, Action.STOP, Reason.CNI_CONFIGURATION_INVALID, codes=(4,)),
    Row(ErrorClass.IO_FAILURE, Action.BACK_OFF, Reason.NETWORK_RETRYING, codes=(5,)),
    Row(ErrorClass.DECODING_FAILURE, Action.STOP, Reason.CNI_CONFIGURATION_INVALID, codes=(6,)),
    Row(ErrorClass.INVALID_CONFIGURATION, Action.STOP, Reason.CNI_CONFIGURATION_INVALID, codes=(7,)),
    Row(ErrorClass.TRY_AGAIN_LATER, Action.BACK_OFF, Reason.NETWORK_RETRYING, codes=(11,)),
    Row(ErrorClass.PLUGIN_NOT_AVAILABLE, Action.BACK_OFF, Reason.NETWORK_RETRYING, codes=(50,)),
    Row(ErrorClass.LIMITED_CONNECTIVITY, Action.BACK_OFF, Reason.NETWORK_RETRYING, codes=(51,)),
    *_again(ErrorClass.PLUGIN_CRASHED, Reason.NETWORK_RETRYING, faults=(PluginFault.CRASHED,)),
)

UNKNOWN = Classified(ErrorClass.UNKNOWN, Action.BACK_OFF, Reason.NETWORK_RETRYING)


def classify(error: CniError) -> Classified:
    """What `error` means. An error that the table does not know is taken as one that passes."""
    match error:
        case PluginError():
            found = next((row for row in TABLE if row.matches(error)), None)
            return UNKNOWN if found is None else Classified(found.kind, found.action, found.reason)
        case ConfigurationError() | InvalidAttachment():
            return Classified(ErrorClass.INVALID_CONFIGURATION, Action.STOP, Reason.CNI_CONFIGURATION_INVALID)
        case NotCached():
            return Classified(ErrorClass.NO_RECORD, Action.IGNORE, Reason.NETWORK_RETRYING)
        case CacheUnusable():
            return Classified(ErrorClass.CACHE_UNUSABLE, Action.BACK_OFF, Reason.NETWORK_RETRYING)
        case _:
            return UNKNOWN
