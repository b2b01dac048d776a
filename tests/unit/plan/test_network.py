"""When a network is in the way of a start, when it is repaired, and what people read of it meanwhile."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from tests.property.worlds import NODE_NAME, NOW, REF, Draw

from perdure.api.conditions import ConditionType, Reason
from perdure.api.names import ANNOTATION_HOST_PORTS, OperationId
from perdure.api.network import (
    Network,
    NetworkMode,
    NetworkPeer,
    NetworkPolicy,
    PortPolicy,
    RuntimePort,
    write_host_ports,
)
from perdure.api.phases import Phase
from perdure.api.runtime import DesiredState, RestartPolicy, RuntimeSpec, RuntimeStatus
from perdure.plan.certainty import Absent, Certain, Present, Unknown
from perdure.plan.health import HealthKind
from perdure.plan.network import NUMBERS_RETRY_SECONDS
from perdure.plan.planner import plan
from perdure.plan.spec_hash import spec_mark
from perdure.plan.steps import (
    Begin,
    CreateContainer,
    CreateSandbox,
    Forget,
    LeadOutPorts,
    Note,
    Plan,
    ReapTask,
    RemoveContainer,
    RemoveSandbox,
    RepairNetwork,
    StartTask,
    StopTask,
)
from perdure.plan.world import (
    ContainerFacts,
    Exit,
    Failure,
    Freeze,
    Gone,
    Halted,
    HostPort,
    ImageFacts,
    LedgerFacts,
    Observed,
    Op,
    OpenOperation,
    Record,
    SandboxFacts,
    SnapshotFacts,
    Source,
    TaskFacts,
    TaskState,
    Wanted,
    Workspace,
    World,
)

IMAGE = ImageFacts("example/image:1", "sha256:dd", Draw(1).image().chain_id)
GAME = RuntimePort(name="game", container_port=7777)
SERVED = (HostPort("game", "TCP", 7777, 7000),)
WHOLE = SandboxFacts("/run/netns/x", NetworkMode.CNI, True, ("10.0.0.2", "fd00::2"))
LOOPBACK = SandboxFacts("/run/netns/x")
OTHERS = NetworkPolicy(allow_from=(NetworkPeer(namespace="others"),))
SEEN: Certain[SandboxFacts] = Present(WHOLE)
SILENT = Network()
ALIVE = TaskFacts(TaskState.RUNNING, 42)
KEY = REF.snapshot_key(1)
SPEC = RuntimeSpec(image=IMAGE.name, command=("/bin/run",))


def world(
    *,
    sandbox: Certain[SandboxFacts] = SEEN,
    task: TaskFacts | None = ALIVE,
    network: Network = SILENT,
    ports: tuple[RuntimePort, ...] = (),
    told: dict[str, int] | None = None,
    published: tuple[tuple[str, int], ...] = (),
    container: bool = True,
    failure: Failure | None = None,
    **spec: object,
) -> World:
    """A runtime that was made, and runs unless `task` says otherwise."""
    wanted = msgspec.structs.replace(SPEC, network=network, ports=ports, **spec)
    text = write_host_ports(told or {})
    runtime = msgspec.structs.replace(
        Draw(1).runtime(terminating=False),
        spec=wanted,
        annotations={ANNOTATION_HOST_PORTS: text} if text is not None else {},
        status=RuntimeStatus(),
        invalid=None,
    )
    workspace = Workspace(KEY, 1, IMAGE.name, IMAGE.digest, IMAGE.chain_id, prepared=True, ever_started=True)
    alive = task is not None and task.state is TaskState.RUNNING
    record = Record(
        ref=REF,
        newest_n=1,
        workspace=workspace,
        operations=1,
        numbered_from=NOW - 100,
        phase=Phase.RUNNING if alive else Phase.STOPPED,
        started_at=NOW - 100,
        running=task is not None,
        host_ports=published,
    )
    snapshot = SnapshotFacts(KEY, 1, IMAGE.chain_id, IMAGE.name, IMAGE.digest, None)
    observed = Observed(
        container=Present(ContainerFacts(REF.container_id, KEY, spec_mark(wanted))) if container else Absent(),
        task=Present(task) if task is not None else Absent(),
        snapshots=Present((snapshot,)),
        sandbox=sandbox,
        image=Present(IMAGE),
    )
    return World(REF, Wanted(runtime), observed, record, failure)


def steps_of(seen: World) -> list[object]:
    """What is done; the intent of an operation goes before it and is not what is asked here."""
    return [step for step in plan(seen, NOW).steps if not isinstance(step, Begin)]


def status_of(made: Plan) -> RuntimeStatus:
    assert made.status is not None
    return made.status


def said(made: Plan, type_: ConditionType) -> tuple[str, str, str]:
    (found,) = (condition for condition in status_of(made).conditions if condition.type == type_)
    return found.status, found.reason, found.message


# ---------------------------------------------------------------------------------------------- kinds of network


@pytest.mark.parametrize(
    ("has", "wanted", "stays"),
    [
        (WHOLE, None, True),
        (WHOLE, NetworkMode.CNI, True),
        (WHOLE, NetworkMode.NONE, False),
        (LOOPBACK, None, True),
        (LOOPBACK, NetworkMode.NONE, True),
        (LOOPBACK, NetworkMode.CNI, False),
    ],
)
def test_another_kind_of_network_stops_the_process_first(
    has: SandboxFacts, wanted: NetworkMode | None, stays: bool
) -> None:
    done = steps_of(world(sandbox=Present(has), network=Network(mode=wanted)))
    assert done == [] if stays else [type(step) for step in done] == [StopTask]


@pytest.mark.parametrize("policy", list(RestartPolicy))
def test_the_stop_for_another_kind_of_network_is_no_crash(policy: RestartPolicy) -> None:
    ended = TaskFacts(TaskState.STOPPED, 42, Exit(143, NOW))
    seen = world(task=ended, network=Network(mode=NetworkMode.NONE), restart_policy=policy)
    operation = OpenOperation(OperationId("operation"), Op.RESTART, Source.KUBECTL, NOW)
    seen = replace(seen, record=replace(seen.record, operation=operation, restarts=3))
    (reap,) = steps_of(seen)
    assert isinstance(reap, ReapTask)
    assert (reap.halted, reap.next_start_at, reap.failures_in_row, reap.restarts) == (None, None, 0, 3)


def test_without_a_process_the_old_network_goes_then_the_container_that_would_join_it() -> None:
    wanted = Network(mode=NetworkMode.NONE)
    assert steps_of(world(task=None, network=wanted)) == [RemoveSandbox()]
    assert steps_of(world(task=None, network=wanted, sandbox=Absent())) == [RemoveContainer(REF.container_id)]
    assert steps_of(world(task=None, network=wanted, sandbox=Absent(), container=False)) == [CreateSandbox()]
    (made,) = steps_of(world(task=None, network=wanted, sandbox=Present(LOOPBACK), container=False))
    assert isinstance(made, CreateContainer)


def test_a_network_that_cannot_be_looked_at_is_neither_left_nor_repaired() -> None:
    unknown = Unknown("permission denied")
    assert steps_of(world(sandbox=unknown)) == []
    made = plan(world(sandbox=unknown, task=None), NOW)
    assert made.steps == ()
    assert made.waiting is not None
    assert made.waiting.reason is Reason.NETWORK_FAILED


# ---------------------------------------------------------------------------------------------- ports before a start


def test_a_start_waits_for_numbers_and_says_so() -> None:
    made = plan(world(task=None, ports=(GAME,)), NOW)
    assert made.steps == ()
    assert made.waiting is not None
    assert made.waiting.reason is Reason.PORTS_PENDING
    assert made.wake_at == NOW + NUMBERS_RETRY_SECONDS
    pending = "the controller has not reserved its ports on the node yet"
    assert said(made, ConditionType.NETWORK_READY) == ("False", "PortsPending", pending)
    assert said(made, ConditionType.READY) == ("False", "PortsPending", pending)


def test_a_start_with_numbers_goes_on() -> None:
    (start,) = steps_of(world(task=None, ports=(GAME,), told={"game": 7000}))
    assert isinstance(start, StartTask)


def test_a_stopped_runtime_waits_for_no_number() -> None:
    made = plan(world(task=None, ports=(GAME,), desired_state=DesiredState.STOPPED), NOW)
    assert made.waiting is None
    assert status_of(made).phase == Phase.STOPPED


STATIC = RuntimePort(name="rcon", container_port=25575, policy=PortPolicy.STATIC, host_port=9000)
BOTH = (*SERVED, HostPort("rcon", "TCP", 25575, 9000))


@pytest.mark.parametrize("halted", [False, True])
@pytest.mark.parametrize(
    ("ports", "told", "kept"),
    [
        ((GAME, STATIC), {"game": 7000, "rcon": 9000}, BOTH),
        ((GAME, STATIC), {}, BOTH),
        ((GAME,), {"game": 7000, "rcon": 9000}, SERVED),
        ((GAME,), {"game": 7000}, SERVED),
        ((), {}, ()),
        ((GAME, msgspec.structs.replace(STATIC, host_port=9001)), {"game": 7000, "rcon": 9000}, SERVED),
        ((msgspec.structs.replace(GAME, container_port=8888), STATIC), {"game": 7000, "rcon": 9000}, BOTH[-1:]),
        ((GAME, STATIC, RuntimePort(name="more", container_port=1)), {"game": 7000, "rcon": 9000, "more": 7001}, BOTH),
    ],
    ids=[
        "as asked",
        "lost its numbers",
        "taken out",
        "taken out and told",
        "all",
        "moved",
        "leads elsewhere",
        "one more",
    ],
)
def test_ports_that_a_stopped_runtime_gives_up_are_led_out_of_it_and_none_is_led_in(
    ports: tuple[RuntimePort, ...], told: dict[str, int], kept: tuple[HostPort, ...], halted: bool
) -> None:
    desired = DesiredState.RUNNING if halted else DesiredState.STOPPED
    seen = world(sandbox=Present(replace(WHOLE, ports=BOTH)), task=None, ports=ports, told=told, desired_state=desired)
    assert isinstance(seen.desired, Wanted)
    ended = Halted(Reason.COMPLETED, spec_mark(seen.desired.runtime.spec)) if halted else None
    record = replace(seen.record, running=False, phase=Phase.STOPPED, halted=ended)
    assert [step for step in steps_of(replace(seen, record=record)) if isinstance(step, LeadOutPorts)] == (
        [LeadOutPorts(kept)] if kept != BOTH else []
    )


# ---------------------------------------------------------------------------------------------- of what runs


@pytest.mark.parametrize(
    ("facts", "network", "ready"),
    [
        (replace(WHOLE, attached=False, addresses=()), Network(), ("False", "InProgress", "nothing is attached")),
        (replace(WHOLE, damage="eth0 is down"), Network(), ("False", "InProgress", "eth0 is down")),
        (WHOLE, Network(policy=OTHERS), ("True", "Running", "")),
        (replace(WHOLE, policy=OTHERS), Network(), ("True", "Running", "")),
    ],
)
def test_what_is_wrong_with_a_live_network_is_put_right_without_a_restart(
    facts: SandboxFacts, network: Network, ready: tuple[str, str, str]
) -> None:
    seen = world(sandbox=Present(facts), network=network)
    *told, repair = steps_of(seen)
    assert isinstance(repair, RepairNetwork)
    events = [event.kind for step in told if isinstance(step, Note) for event in step.events]
    assert events == ([HealthKind.INSPECT_UNHEALTHY] if ready[0] == "False" else [])
    made = plan(seen, NOW)
    assert said(made, ConditionType.READY) == ready
    assert status_of(made).phase == Phase.RUNNING


@pytest.mark.parametrize(
    ("served", "ports", "told", "repaired"),
    [
        (SERVED, (GAME,), {"game": 7000}, False),
        ((), (GAME,), {"game": 7000}, True),
        (SERVED, (), {}, True),
        (SERVED, (msgspec.structs.replace(GAME, container_port=8888),), {"game": 7000}, True),
        ((), (GAME,), {}, False),
        (SERVED, (GAME, RuntimePort(name="more", container_port=1)), {"game": 7000}, False),
    ],
    ids=["as asked", "added", "taken out", "leads elsewhere", "without a number", "one more without a number"],
)
def test_ports_of_a_live_runtime_follow_its_spec_once_all_have_numbers(
    served: tuple[HostPort, ...], ports: tuple[RuntimePort, ...], told: dict[str, int], repaired: bool
) -> None:
    done = steps_of(world(sandbox=Present(replace(WHOLE, ports=served)), ports=ports, told=told))
    assert done == ([RepairNetwork("other ports are wanted")] if repaired else [])


def test_nothing_of_networks_is_repaired_where_there_is_none() -> None:
    assert steps_of(world(sandbox=Present(LOOPBACK), network=Network(policy=OTHERS))) == []


def test_a_live_process_whose_namespace_lost_its_name_gives_it_back() -> None:
    assert steps_of(world(sandbox=Absent())) == [CreateSandbox(pid=42)]


def test_a_namespace_that_goes_with_its_process_is_made_anew() -> None:
    ended = TaskFacts(TaskState.STOPPED, 42, Exit(137, NOW))
    (reap,) = steps_of(world(sandbox=Absent(), task=ended))
    assert isinstance(reap, ReapTask)
    created = TaskFacts(TaskState.CREATED, 42)
    assert steps_of(world(sandbox=Absent(), task=created)) == [CreateSandbox()]


# ---------------------------------------------------------------------------------------------- what failed


def failed(reason: Reason = Reason.ADDRESS_POOL_EXHAUSTED, **changes: object) -> Failure:
    failure = Failure(reason, "no address is left", "StartTask", False, False, NOW + 8, attempts=5)
    return replace(failure, **changes)  # type: ignore[arg-type]


AGAIN = f"no address is left (attempt 5, tried again at {'2027-01-15T08:00:08Z'})"


@pytest.mark.parametrize("reason", [Reason.NETWORK_RETRYING, Reason.PORT_TAKEN, Reason.PORT_RANGE_EXHAUSTED])
def test_a_failed_network_says_which_attempt_it_was_and_when_the_next_one_is(reason: Reason) -> None:
    made = plan(world(task=None, failure=failed(reason)), NOW)
    assert said(made, ConditionType.NETWORK_READY) == ("False", reason.value, AGAIN)
    assert said(made, ConditionType.READY) == ("False", reason.value, "no address is left")
    assert (made.steps, made.wake_at) == ((), NOW + 8)


def test_a_repair_that_failed_leaves_the_process_and_waits_for_its_time() -> None:
    made = plan(world(sandbox=Present(replace(WHOLE, damage="eth0 is down")), failure=failed()), NOW)
    assert made.steps == ()
    assert made.waiting is not None, "else the failure counts as over, and the next attempt as the first"
    assert made.wake_at == made.waiting.until == NOW + 8
    assert said(made, ConditionType.NETWORK_READY) == ("False", "AddressPoolExhausted", AGAIN)
    assert said(made, ConditionType.READY) == ("False", "AddressPoolExhausted", "no address is left")
    assert status_of(made).phase == Phase.RUNNING


def test_another_failure_of_a_live_runtime_leaves_it_ready_and_waits_too() -> None:
    made = plan(world(failure=failed(Reason.LEDGER_UNAVAILABLE)), NOW)
    assert made.waiting is not None
    assert said(made, ConditionType.READY) == ("True", "Running", "")
    assert said(made, ConditionType.DEGRADED) == ("True", "LedgerUnavailable", "no address is left")
    assert said(made, ConditionType.NETWORK_READY)[:2] == ("True", "Attached")


def test_when_its_time_has_come_it_is_tried_again() -> None:
    seen = world(sandbox=Present(replace(WHOLE, damage="eth0 is down")), failure=failed(retry_at=NOW))
    assert steps_of(seen)[-1] == RepairNetwork("eth0 is down")


# ---------------------------------------------------------------------------------------------- what is shown


def test_the_first_address_and_the_ports_are_shown_of_what_runs() -> None:
    status = status_of(
        plan(world(sandbox=Present(replace(WHOLE, ports=SERVED)), ports=(GAME,), told={"game": 7000}), NOW)
    )
    assert status.address == "10.0.0.2"
    assert [(port.name, port.host_port) for port in status.ports] == [("game", 7000)]
    assert (status.node_name, status.phase) == (NODE_NAME, Phase.RUNNING)


def test_the_address_is_not_shown_of_what_stopped_and_the_number_on_the_node_stays() -> None:
    stopped = world(
        task=None,
        sandbox=Present(replace(WHOLE, ports=SERVED)),
        ports=(GAME,),
        told={"game": 7000},
        desired_state=DesiredState.STOPPED,
    )
    stopped = replace(stopped, record=replace(stopped.record, running=False))
    status = status_of(plan(stopped, NOW))
    assert status.address is None
    assert [port.host_port for port in status.ports] == [7000]


@pytest.mark.parametrize(
    ("sandbox", "expected"),
    [
        (Present(WHOLE), ("True", "Attached", "")),
        (Present(LOOPBACK), ("True", "Configured", "")),
        (Present(replace(WHOLE, damage="eth0 is down")), ("False", "InProgress", "eth0 is down")),
        (Present(replace(WHOLE, attached=False)), ("False", "InProgress", "")),
        (Unknown("permission denied"), ("Unknown", "NetworkFailed", "permission denied")),
    ],
)
def test_the_network_is_ready_only_if_it_is_whole(
    sandbox: Certain[SandboxFacts], expected: tuple[str, str, str]
) -> None:
    assert said(plan(world(sandbox=sandbox), NOW), ConditionType.NETWORK_READY) == expected


# ---------------------------------------------------------------------------------------------- the end of a life


@pytest.mark.parametrize("kept", [False, True])
def test_the_record_of_what_was_released_by_force_goes_once_nothing_is_pinned(kept: bool) -> None:
    seen = world(task=None, sandbox=Absent(), container=False)
    record = replace(
        seen.record, deletion_seen=True, force_released=True, phase=Phase.REMOVED, operation=None, running=False
    )
    snapshots = seen.observed.snapshots if kept else Present(())
    observed = replace(seen.observed, snapshots=snapshots, ledger=Present(LedgerFacts(force_released=True)))
    gone = replace(seen, desired=Gone(), record=record, observed=observed)
    assert plan(gone, NOW).steps == (() if kept else (Forget(),))


def test_a_network_that_is_left_of_what_was_released_by_force_goes_first() -> None:
    seen = world(task=None, container=False)
    record = replace(seen.record, deletion_seen=True, force_released=True, phase=Phase.RUNNING, running=False)
    gone = replace(seen, desired=Gone(), record=record, observed=replace(seen.observed, snapshots=Present(())))
    assert RemoveSandbox() in plan(gone, NOW).steps
    assert not any(isinstance(step, Forget | Note) for step in plan(gone, NOW).steps)


def test_what_was_given_up_while_its_node_was_away_is_stopped_when_that_returns() -> None:
    """It may run elsewhere by now; its data stays."""
    seen = world()
    ledger = Present(LedgerFacts(force_released=True))
    gone = replace(seen, desired=Gone(), observed=replace(seen.observed, ledger=ledger))
    (step,) = plan(gone, NOW).steps
    assert isinstance(step, Note)
    assert step.record.force_released
    noted = replace(gone, record=step.record, observed=replace(gone.observed, ledger=Unknown("not asked")))
    begin, stop = plan(noted, NOW).steps
    assert isinstance(begin, Begin)
    assert begin.op is Op.STOP
    assert isinstance(stop, StopTask)


@pytest.mark.parametrize("ledger", [Present(LedgerFacts()), Unknown("away")], ids=["says nothing", "is away"])
def test_what_runs_without_an_object_goes_on_unless_the_ledger_tells_that_it_was_given_up(
    ledger: Certain[LedgerFacts],
) -> None:
    seen = world()
    for desired in (Gone(), Gone(confirmed=True)):
        gone = replace(seen, desired=desired, observed=replace(seen.observed, ledger=ledger))
        assert plan(gone, NOW).steps == ()


def test_a_frozen_node_stops_nothing_that_was_given_up() -> None:
    seen = world()
    ledger = Present(LedgerFacts(force_released=True))
    gone = replace(
        seen,
        desired=Gone(),
        freeze=Freeze(Reason.MASS_ABSENCE, "half of them are gone"),
        observed=replace(seen.observed, ledger=ledger),
    )
    assert plan(gone, NOW).steps == ()
