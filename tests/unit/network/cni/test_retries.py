"""The table of errors, against the texts that the reference plugins 1.1.1 and 1.9.1 really write."""

from __future__ import annotations

import pytest

from perdure.api.conditions import Reason
from perdure.network.cni.error_classes import Action, ErrorClass
from perdure.network.cni.errors import (
    CacheUnusable,
    CniError,
    Command,
    ConfigurationError,
    ConfigurationFault,
    Execution,
    InvalidAttachment,
    NotCached,
    PluginError,
    PluginFault,
)
from perdure.network.cni.retries import TABLE, classify

ADD, CHECK, DEL = Command.ADD, Command.CHECK, Command.DEL


def error(text: str, command: Command = ADD, code: int = 999, fault: PluginFault = PluginFault.REFUSED) -> PluginError:
    return PluginError(Execution("bridge", command, "lab", "id-1", "/ns", "eth0"), fault, text, code=code)


@pytest.mark.parametrize(
    ("command", "text", "kind", "action"),
    [
        (ADD, "container veth name provided (eth0) already exists", "already-attached", Action.DELETE_THEN_ADD),
        (
            ADD,
            'container veth name ("eth0") peer provided ("veth1a2b3c4d") already exists',
            "already-attached",
            Action.DELETE_THEN_ADD,
        ),
        (
            ADD,
            "failed to allocate for range 0: 10.1.0.2 has been allocated to id-1, duplicate allocation is not allowed",
            "duplicate-allocation",
            Action.DELETE_THEN_ADD,
        ),
        (
            ADD,
            "failed to allocate for range 0: no IP addresses available in range set: 10.1.0.1-10.1.0.2",
            "pool-exhausted",
            Action.SWEEP_THEN_BACK_OFF,
        ),
        (
            ADD,
            "failed to allocate for range 0: requested IP address 10.1.0.2 is not available in range set 10.1.0.1-10.1.0.2",
            "pool-exhausted",
            Action.SWEEP_THEN_BACK_OFF,
        ),
        (
            DEL,
            "running [/usr/sbin/iptables -t nat -X CNI-b6b1 --wait]: exit status 2: iptables v1.8.9 (nf_tables): "
            "Chain 'CNI-b6b1' does not exist",
            "half-deleted",
            Action.DELETE_AGAIN,
        ),
        (
            DEL,
            "could not teardown ipv4 dnat: running [/usr/sbin/iptables -t nat -X CNI-DN-1 --wait]: exit status 1: "
            "iptables: No chain/target/match by that name.",
            "half-deleted",
            Action.DELETE_AGAIN,
        ),
        (ADD, '"br0" already has an IP address different from 10.2.0.1/24', "wrong-subnet", Action.STOP),
        (
            ADD,
            'failed to set bridge addr: "br0" already has an IP address different from 10.2.0.1/24',
            "wrong-subnet",
            Action.STOP,
        ),
        (ADD, 'failed to create bridge "d0": "d0" already exists but is not a bridge', "not-a-bridge", Action.STOP),
        (ADD, "could not set bridge's mac: invalid argument", "bridge-mac", Action.REPAIR_BRIDGE),
        (
            ADD,
            'failed to open netns "/run/x": failed to Statfs "/run/x": no such file or directory',
            "netns-lost",
            Action.RECREATE_NETNS,
        ),
        (ADD, 'failed to open netns "/run/x": unknown FS magic on "/run/x": ef53', "netns-lost", Action.RECREATE_NETNS),
        (ADD, 'failed to find plugin "host-local" in path [/usr/lib/cni]', "plugin-missing", Action.STOP),
        (
            ADD,
            'failed to locate iptables: exec: "iptables": executable file not found in $PATH',
            "tool-missing",
            Action.STOP,
        ),
        (
            ADD,
            "running [iptables -t nat -N CNI-1 --wait]: exit status 4: Another app is currently holding the xtables lock.",
            "tool-busy",
            Action.DELETE_THEN_ADD,
        ),
        (
            ADD,
            'failed to create bridge "br0": could not add "br0": operation not permitted',
            "no-privilege",
            Action.STOP,
        ),
        (ADD, 'failed to lookup master "eth9": Link not found', "master-missing", Action.STOP),
        (ADD, "Link not found", "master-missing", Action.STOP),
        (Command.STATUS, "missing containerID", "command-unsupported", Action.IGNORE),
        (Command.GC, "unknown CNI_COMMAND: GC", "command-unsupported", Action.IGNORE),
        (ADD, "Network 10.1.0.0/31 too small to allocate from", "invalid-configuration", Action.STOP),
        (
            ADD,
            "invalid range set 0: subnets 10.1.0.0/24 and 10.1.0.0/16 overlap",
            "invalid-configuration",
            Action.STOP,
        ),
        (ADD, "Invalid host port number: 0", "invalid-configuration", Action.STOP),
        (
            CHECK,
            "could not check ipv6 dnat: chain CNI-DN-0123456789abcdef01234 not found in iptables table nat",
            "check-unreliable",
            Action.IGNORE,
        ),
        (
            CHECK,
            "could not check ipv4 dnat: chain CNI-DN-0123456789abcdef01234 not found in iptables table nat",
            "rules-missing",
            Action.REPAIR_RULES,
        ),
        (CHECK, "expected FORWARD rule [-j CNI-FORWARD] not found", "rules-missing", Action.REPAIR_RULES),
        (CHECK, 'missing hostport rules in "hostports" chain', "rules-missing", Action.REPAIR_RULES),
        (CHECK, "Bridge interface br0 Mac doesn't match: 02:00:00:00:88:01", "bridge-changed", Action.IGNORE),
        (
            CHECK,
            "Bridge interface br0 configured Promisc Mode false doesn't match current state: true ",
            "bridge-changed",
            Action.IGNORE,
        ),
        (
            CHECK,
            "Interface eth0 Mac 02:00:00:00:00:01 doesn't match container Mac: 02:00:00:00:00:02",
            "attachment-damaged",
            Action.DELETE_THEN_ADD,
        ),
        (CHECK, "CNI created interface in container eth0 not found", "attachment-damaged", Action.DELETE_THEN_ADD),
        (CHECK, "Interface name eth0 not found", "attachment-damaged", Action.DELETE_THEN_ADD),
        (
            CHECK,
            "host-local: Failed to find address added by container id-1",
            "attachment-damaged",
            Action.DELETE_THEN_ADD,
        ),
        (ADD, "something nobody has seen before", "unknown", Action.BACK_OFF),
    ],
)
def test_what_the_reference_plugins_say(command: Command, text: str, kind: str, action: Action) -> None:
    found = classify(error(text, command))
    assert (found.kind, found.action) == (kind, action)


@pytest.mark.parametrize(
    ("code", "kind", "action"),
    [
        (1, ErrorClass.INCOMPATIBLE_VERSION, Action.STOP),
        (2, ErrorClass.UNSUPPORTED_FIELD, Action.STOP),
        (3, ErrorClass.CONTAINER_UNKNOWN, Action.DELETE_THEN_ADD),
        (4, ErrorClass.INVALID_ENVIRONMENT, Action.STOP),
        (5, ErrorClass.IO_FAILURE, Action.BACK_OFF),
        (6, ErrorClass.DECODING_FAILURE, Action.STOP),
        (7, ErrorClass.INVALID_CONFIGURATION, Action.STOP),
        (8, ErrorClass.NETNS_LOST, Action.RECREATE_NETNS),
        (11, ErrorClass.TRY_AGAIN_LATER, Action.BACK_OFF),
        (50, ErrorClass.PLUGIN_NOT_AVAILABLE, Action.BACK_OFF),
        (51, ErrorClass.LIMITED_CONNECTIVITY, Action.BACK_OFF),
        (100, ErrorClass.UNKNOWN, Action.BACK_OFF),
    ],
)
def test_what_the_specifications_codes_mean(code: int, kind: ErrorClass, action: Action) -> None:
    found = classify(error("no words", code=code))
    assert (found.kind, found.action) == (kind, action)


def test_a_container_unknown_to_a_del_needs_no_cleanup() -> None:
    assert classify(error("no words", DEL, code=3)).action is Action.IGNORE


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (PluginFault.TIMED_OUT, ErrorClass.PLUGIN_TIMEOUT),
        (PluginFault.CRASHED, ErrorClass.PLUGIN_CRASHED),
        (PluginFault.GARBAGE, ErrorClass.GARBAGE_OUTPUT),
    ],
)
def test_half_done_work_is_undone_before_it_is_done_anew(fault: PluginFault, kind: ErrorClass) -> None:
    actions = {command: classify(error("x", command, 0, fault)) for command in (ADD, DEL, CHECK, Command.STATUS)}
    assert {one.kind for one in actions.values()} == {kind}
    assert actions[ADD].action is Action.DELETE_THEN_ADD
    assert actions[DEL].action is Action.DELETE_AGAIN
    assert actions[CHECK].action is actions[Command.STATUS].action is Action.BACK_OFF


@pytest.mark.parametrize(
    ("problem", "kind", "action"),
    [
        (ConfigurationError(ConfigurationFault.NO_PLUGINS, ""), ErrorClass.INVALID_CONFIGURATION, Action.STOP),
        (InvalidAttachment(""), ErrorClass.INVALID_CONFIGURATION, Action.STOP),
        (NotCached(""), ErrorClass.NO_RECORD, Action.IGNORE),
        (CacheUnusable(""), ErrorClass.CACHE_UNUSABLE, Action.BACK_OFF),
        (error("", fault=PluginFault.MISSING), ErrorClass.PLUGIN_MISSING, Action.STOP),
        (error("", fault=PluginFault.NOT_EXECUTABLE), ErrorClass.PLUGIN_NOT_EXECUTABLE, Action.STOP),
        (error("out of memory", fault=PluginFault.NOT_STARTED), ErrorClass.UNKNOWN, Action.BACK_OFF),
    ],
)
def test_what_no_plugin_said(problem: CniError, kind: ErrorClass, action: Action) -> None:
    found = classify(problem)
    assert (found.kind, found.action) == (kind, action)


def test_an_address_that_exists_already_is_no_leftover_interface() -> None:
    assert classify(error("file already exists")).kind is ErrorClass.UNKNOWN


def test_what_waits_for_a_person_does_not_say_that_it_is_being_retried() -> None:
    stopped = [row for row in TABLE if row.action is Action.STOP]
    assert stopped
    assert not any(row.reason is Reason.NETWORK_RETRYING for row in stopped)
