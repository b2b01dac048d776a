"""The stories of the crash matrix on a node that has a network: addresses, ports, damage, and kinds of network."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from tests.crash.cleanup_stories import CLEANUP_STORIES
from tests.crash.matrix import ABOUT_ARCHIVES, Act, Goal, Stage, Story
from tests.crash.plant import Survivors
from tests.crash.stopping_stories import STOPPING_STORIES
from tests.crash.stories import (
    PRESERVE,
    SPEC,
    STORIES,
    condition,
    create,
    delete,
    delete_with,
    edit,
    gone,
    in_phase,
    preserved,
    process_crashes,
    purged,
    running,
    tear_finalizer_off,
    the,
)

from perdure.api.network import (
    Network,
    NetworkMode,
    NetworkPeer,
    NetworkPolicy,
    PortPolicy,
    PortProtocol,
    RuntimePort,
)
from perdure.api.runtime import DeletionPolicy, DesiredState, RestartPolicy

GAME = RuntimePort(name="game", container_port=7777, protocol=PortProtocol.TCPUDP)
RCON = RuntimePort(name="rcon", container_port=25575, policy=PortPolicy.STATIC, host_port=9000)
MOVED = msgspec.structs.replace(RCON, host_port=9001)
OTHERS = NetworkPolicy(allow_from=(NetworkPeer(namespace="others"),))
LISTENING = msgspec.structs.replace(SPEC, ports=(GAME, RCON))

# ---------------------------------------------------------------------------------------------- what is done


def damage(survivors: Survivors) -> None:
    """Somebody flushed rules or took an interface, and the next look of the upkeep finds it."""
    _change(survivors, lost=False)


def take_names(survivors: Survivors) -> None:
    """Somebody unmounted the namespaces; the processes in them live on."""
    _change(survivors, lost=True)


def _change(survivors: Survivors, *, lost: bool) -> None:
    for uid, facts in list(survivors.sandboxes.made.items()):
        if lost:
            del survivors.sandboxes.made[uid]
        else:
            survivors.sandboxes.made[uid] = replace(facts, damage="interface eth0 is gone")
        if survivors.process is not None:
            survivors.process.queue.add(uid)


def listen_and_create(survivors: Survivors) -> None:
    """A program of the node has the first number of the range."""
    survivors.sandboxes.foreign_listeners = {7000}
    create(LISTENING)(survivors)


def reboot_and_listen(survivors: Survivors) -> None:
    """After the boot a program of the node is first to take a number that was published."""
    survivors.machine.lose_tasks()
    survivors.sandboxes.made.clear()
    survivors.sandboxes.foreign_listeners = {7000}


def hang_up(survivors: Survivors) -> None:
    survivors.sandboxes.foreign_listeners = set()


# ---------------------------------------------------------------------------------------------- what it comes to


def serving(**numbers: int) -> Goal:
    """Runs, is reached under these numbers, and its status and annotation tell them."""

    def goal(survivors: Survivors) -> bool:
        runtime = the(survivors)
        if runtime is None or not running(survivors):
            return False
        (facts,) = survivors.sandboxes.made.values()
        return (
            {port.name: port.host_port for port in facts.ports} == numbers
            and {port.name: port.host_port for port in runtime.status.ports} == numbers
            and runtime.host_ports == numbers
            and facts.addresses[:1] == (runtime.status.address,)
            and condition(survivors, "NetworkReady") == ("True", "Attached")
        )

    return goal


def serving_after(starts: int, **numbers: int) -> Goal:
    return lambda survivors: serving(**numbers)(survivors) and len(survivors.machine.starts) == starts


def stopped_with(**numbers: int) -> Goal:
    """Rests, and these lead into it, no others."""
    return lambda survivors: (
        in_phase("Stopped")(survivors)
        and all(
            {port.name: port.host_port for port in facts.ports} == numbers
            for facts in survivors.sandboxes.made.values()
        )
    )


def open_to(policy: NetworkPolicy) -> Goal:
    return lambda survivors: (
        serving(game=7000, rcon=9000)(survivors)
        and len(survivors.machine.starts) == 1
        and all(facts.policy == policy for facts in survivors.sandboxes.made.values())
    )


def on_loopback(survivors: Survivors) -> bool:
    runtime = the(survivors)
    modes = [facts.mode for facts in survivors.sandboxes.made.values()]
    return (
        running(survivors)
        and runtime is not None
        and (modes, runtime.status.address, runtime.status.restarts) == ([NetworkMode.NONE], None, 0)
    )


def gone_or_preserved(survivors: Survivors) -> bool:
    return gone(survivors) and len(survivors.cluster.archives) <= 1


def port_is_taken(survivors: Survivors) -> bool:
    return condition(survivors, "NetworkReady") == ("False", "PortTaken") and not survivors.machine.tasks


NUMBERS = {"game": 7000, "rcon": 9000}
START = Stage(create(LISTENING), serving_after(1, **NUMBERS))
NEVER = msgspec.structs.replace(SPEC, restart_policy=RestartPolicy.NEVER)


def _story(
    name: str, *stages: Stage, tried_from: int = 1, purged: bool = False, varies: frozenset[str] = frozenset()
) -> Story:
    return Story(name, stages, tried_from=tried_from, purged=purged, network=True, varies=varies)


def _during(act: Act, goal: Goal, call: str, interrupt: Act) -> Stage:
    return Stage(act, goal, during=call, interrupt=interrupt)


NETWORKED_STORIES: tuple[Story, ...] = (
    _story("ports: create", START, tried_from=0),
    _story(
        "ports: create beside a listener",
        Stage(listen_and_create, serving_after(1, game=7001, rcon=9000)),
        tried_from=0,
    ),
    _story(
        "ports: the listener ends when its number was replaced",
        Stage(
            listen_and_create,
            serving_after(1, game=7001, rcon=9000),
            during="ledger.replace_port",
            when="after",
            interrupt=hang_up,
        ),
        tried_from=0,
    ),
    _story("ports: crash", START, Stage(process_crashes(), serving_after(2, **NUMBERS))),
    _story(
        "ports: stop and start",
        START,
        Stage(edit(desired_state=DesiredState.STOPPED), in_phase("Stopped")),
        Stage(edit(desired_state=DesiredState.RUNNING), serving_after(2, **NUMBERS)),
    ),
    _story(
        "ports: remove and start",
        START,
        Stage(edit(desired_state=DesiredState.REMOVED), in_phase("Removed")),
        Stage(edit(desired_state=DesiredState.RUNNING), serving_after(2, **NUMBERS)),
        varies=ABOUT_ARCHIVES,
    ),
    _story(
        "ports: added, moved and taken out",
        Stage(create(), running),
        Stage(edit(ports=(GAME, RCON)), serving_after(1, **NUMBERS)),
        Stage(edit(ports=(GAME, MOVED)), serving_after(1, game=7000, rcon=9001)),
        Stage(edit(ports=(MOVED,)), serving_after(1, rcon=9001)),
        Stage(edit(ports=(GAME, MOVED)), serving_after(1, game=7001, rcon=9001)),
    ),
    _story(
        "ports: taken out while it is stopped",
        START,
        Stage(edit(desired_state=DesiredState.STOPPED), in_phase("Stopped")),
        Stage(edit(ports=(GAME,)), stopped_with(game=7000)),
        Stage(edit(ports=(GAME, MOVED), desired_state=DesiredState.RUNNING), serving_after(2, game=7000, rcon=9001)),
    ),
    _story(
        "ports: preserve and bring back",
        START,
        PRESERVE,
        Stage(create(LISTENING), serving_after(2, game=7001, rcon=9000)),
    ),
    _story("ports: purge", START, Stage(delete_with(DeletionPolicy.PURGE), purged), purged=True),
    _story(
        "ports: deleted while starting",
        _during(create(LISTENING), preserved(1), "engine.start_task", delete),
        tried_from=0,
    ),
    _story(
        "ports: deleted while they are published",
        _during(create(LISTENING), gone_or_preserved, "ledger.ports_published", delete),
        tried_from=0,
    ),
    _story(
        "ports: object torn off in its deletion",
        START,
        _during(delete, preserved(1), "sandbox.remove", tear_finalizer_off),
    ),
    _story(
        "ports: taken after a boot",
        START,
        Stage(reboot_and_listen, port_is_taken, restarts=True),
        Stage(hang_up, serving_after(2, **NUMBERS)),
    ),
    _story("network: damaged", START, Stage(damage, serving_after(1, **NUMBERS))),
    _story("network: its name is lost", START, Stage(take_names, serving_after(1, **NUMBERS))),
    _story("network: policy", START, Stage(edit(network=Network(policy=OTHERS)), open_to(OTHERS))),
    _story(
        "network: another kind and back",
        Stage(create(NEVER), running),
        Stage(edit(network=Network(mode=NetworkMode.NONE)), on_loopback),
        Stage(edit(network=Network(mode=NetworkMode.CNI)), serving_after(3)),
    ),
)

EVERY_STORY = (*STORIES, *CLEANUP_STORIES, *STOPPING_STORIES, *NETWORKED_STORIES)
