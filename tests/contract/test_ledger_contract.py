"""What every ledger does: PostgreSQL and the fake of the crash matrix."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.contract.ledger_rig import Rig, rig
from tests.integration.ledger.samples import (
    NAME_A,
    NAME_B,
    NODE_A,
    NODE_B,
    TTL,
    archive,
    archived,
    failing,
    finished,
    ref,
    started,
    workspace,
)

from perdure.api.conditions import Reason
from perdure.api.names import NamespaceUid, NodeId, OperationId, RuntimeRef
from perdure.api.phases import Phase, may_follow
from perdure.api.runtime import Restore, RestorePolicy
from perdure.plan.certainty import Present
from perdure.plan.health import HealthKind
from perdure.plan.world import Bound, LedgerFacts, Op
from perdure.reconcile.ports.errors import LeaseBusy, LedgerUnavailable, PortError, RowRefused, StaleFence
from perdure.reconcile.ports.journal import HealthRow, LedgerRow, OperationRow
from perdure.reconcile.ports.ledger import AgentLedger, Binding, BoundRow, Catalogued

__all__ = ["rig"]

LATEST = Restore()
NONE = Restore(policy=RestorePolicy.NONE)


async def known(ledger: AgentLedger, of: RuntimeRef, restore: Restore = LATEST) -> LedgerFacts:
    facts = await ledger.facts(of, restore)
    assert isinstance(facts, Present)
    return facts.it


# ---------------------------------------------------------------------------------------------- identity, bindings


async def test_the_identity_stays_and_its_fence_rises_with_each_lease(rig: Rig) -> None:
    first = await rig.controller().identity()
    lease = await rig.agent().acquire("key", TTL)
    second = await rig.agent(NODE_B).identity()
    assert first.id == second.id != ""
    assert first.highest_fence < second.highest_fence == lease.fence


async def test_an_unknown_runtime_is_unbound_and_unreleased(rig: Rig) -> None:
    assert await rig.controller().read(ref(), LATEST) == BoundRow(None, None, False, None, False)
    assert await known(rig.agent(), ref()) == LedgerFacts()


async def test_a_binding_is_decided_once(rig: Rig) -> None:
    first = await rig.controller().bind(ref(), NAME_A, NODE_A, "image:1")
    second = await rig.controller().bind(ref(), NAME_B, NODE_B, "image:1")
    assert first == second == Binding(ref().uid, NAME_A, NODE_A)
    row = await rig.controller().read(ref(), LATEST)
    assert (row.binding, row.namespace_uid) == (first, ref().namespace_uid)


async def test_agents_are_told_where_a_life_was_bound_whatever_its_labels_say(rig: Rig) -> None:
    await rig.controller().bind(ref(), NAME_A, NODE_A, "image:1")
    truth = Bound(NODE_A, ref().namespace_uid)
    for claimed in (ref(), ref(namespace="team-b", namespace_uid="ns-2")):
        assert (await known(rig.agent(NODE_B), claimed)).bound == truth
        assert (await rig.controller().read(claimed, LATEST)).namespace_uid == ref().namespace_uid
    await rig.agent().apply([finished(ref("uid-2"))], NAME_A)
    assert (await known(rig.agent(), ref("uid-2"))).bound is None, "an agent's word is no binding"


async def test_controllers_that_race_to_bind_agree(rig: Rig) -> None:
    for n in range(10):
        of = ref(f"uid-{n}")
        results = await asyncio.gather(
            *(
                rig.controller().bind(of, name, node, "image:1")
                for name, node in [(NAME_A, NODE_A), (NAME_B, NODE_B)] * 4
            )
        )
        assert len(set(results)) == 1
        assert (await rig.controller().read(of, LATEST)).binding == results[0]


# ---------------------------------------------------------------------------------------------- operations


async def test_a_finished_operation_with_a_snapshot_is_proof_of_data(rig: Rig) -> None:
    ledger = rig.agent()
    await ledger.apply([started(ref()), finished(ref(), snapshot_key="br-uid-1-1")], NAME_A)
    assert (await known(ledger, ref())).data_seen == "br-uid-1-1"


async def test_that_there_was_data_is_never_forgotten(rig: Rig) -> None:
    ledger = rig.agent()
    await ledger.apply([finished(ref(), 1, snapshot_key="key-1")], NAME_A)
    await ledger.apply([finished(ref(), 2)], NAME_A)
    assert (await known(ledger, ref())).data_seen == "key-1"
    await ledger.apply([finished(ref(), 4, snapshot_key="key-2")], NAME_A)
    await ledger.apply([finished(ref(), 3, snapshot_key="key-0")], NAME_A)
    assert (await known(ledger, ref())).data_seen == "key-2"


async def test_why_an_operation_does_not_end_is_told_until_it_ends(rig: Rig) -> None:
    ledger = rig.agent()
    id_ = started(ref()).id
    await ledger.apply([failing(ref(), error_code="StoreFull", message="too early")], NAME_A)
    await ledger.apply([started(ref(), op=Op.CLEANUP)], NAME_A)
    assert await rig.trouble(id_) == ("", "", False)
    for code, message in (("StoreFull", "no room"), ("StoreUnavailable", "no disk"), ("StoreUnavailable", "no disk")):
        await ledger.apply([failing(ref(), error_code=code, message=message)], NAME_A)
        assert await rig.trouble(id_) == (code, message, False)
    await ledger.apply([finished(ref(), after=Phase.REMOVED)], NAME_A)
    assert await rig.trouble(id_) == ("", "", True)
    await ledger.apply([failing(ref(), error_code="StoreFull", message="too late")], NAME_A)
    assert await rig.trouble(id_) == ("", "", True)


async def test_the_newest_data_is_that_of_the_later_generation_also_when_the_clock_was_set_back(rig: Rig) -> None:
    ledger = rig.agent()
    await ledger.apply([finished(ref(), 1, at=400, snapshot_key="key-9")], NAME_A)
    await ledger.apply([finished(ref(), 2, at=100, snapshot_key="key-10")], NAME_A)
    assert (await known(ledger, ref())).data_seen == "key-10"


async def test_the_order_of_operations_is_their_nodes_count_and_not_a_clock(rig: Rig) -> None:
    ledger = rig.agent()
    await ledger.apply([finished(ref(), 1, at=1000.0)], NAME_A)
    assert await rig.state(ref()) == (Phase.RUNNING, 0)
    await ledger.apply([finished(ref(), 2, at=700.0, after=Phase.STOPPED, snapshot_key="key-2")], NAME_A)
    assert await rig.state(ref()) == (Phase.STOPPED, 0), "a clock that was put back five minutes"
    assert (await known(ledger, ref())).data_seen == "key-2"
    await ledger.apply([finished(ref(), 1, at=2000.0)], NAME_A)
    assert await rig.state(ref()) == (Phase.STOPPED, 0), "a row that comes twice"
    lost = finished(ref(), 1, at=1.0, after=Phase.REMOVED, numbered_from=2.0)
    await ledger.apply([replace(lost, id=OperationId("after a loss of the journal"))], NAME_A)
    assert await rig.state(ref()) == (Phase.REMOVED, 0), "a journal that was lost begins to count anew"


async def test_a_state_moves_along_the_edges_of_the_table_alone(rig: Rig) -> None:
    ledger = rig.agent()
    n, refused = 0, 0
    for before in Phase:
        for after in Phase:
            life = ref(f"{before}-{after}")
            await ledger.apply([finished(life, n + 1, after=before), finished(life, n + 2, after=after)], NAME_A)
            expected = (after, 0) if may_follow(before, after) else (before, 1)
            assert await rig.state(life) == expected
            refused += expected[1]
            n += 2
    assert refused > 10


async def test_rows_may_come_twice_and_in_any_order(rig: Rig) -> None:
    ledger = rig.agent()
    rows: list[OperationRow] = [
        started(ref(), 1),
        finished(ref(), 1, snapshot_key="key-1"),
        finished(ref(), 2, at=102, snapshot_key="k-2"),
    ]
    await ledger.apply(rows[::-1], NAME_A)
    await ledger.apply(rows, NAME_A)
    await ledger.apply([started(ref(), 2)], NAME_A)
    assert (await known(ledger, ref())).data_seen == "k-2"


ODD = "nul \0 and \udce4"


async def test_odd_characters_in_any_text_do_not_hold_the_rows_up(rig: Rig) -> None:
    odd = ref(f"uid {ODD}")
    rows: list[LedgerRow] = [
        replace(started(odd), correlation=ODD, image=ODD),
        replace(finished(odd, message=ODD, snapshot_key="key-1"), error_code=ODD, image=ODD),
        HealthRow(ODD, odd, HealthKind.EXITED, 100.0, message=ODD),
    ]
    await rig.agent().apply(rows, NAME_A)
    for row in rows:
        await rig.agent().apply([row], NAME_A)
    assert (await known(rig.agent(), odd)).data_seen == "key-1"
    assert len(await rig.health_events()) == 1
    await rig.controller().force_release(odd, ODD)
    assert (await known(rig.agent(), odd)).force_released


@pytest.mark.parametrize("beside", [0, 1])
async def test_a_row_that_is_never_taken_is_refused_by_a_name_of_its_own_and_nothing_beside_it_is_written(
    rig: Rig, beside: int
) -> None:
    good = [finished(ref(f"uid-{n}"), snapshot_key="key-1") for n in range(beside)]
    with pytest.raises(RowRefused, match="out of range"):
        await rig.agent().apply([*good, finished(ref("bad"), at=1e15, snapshot_key="key-1")], NAME_A)
    assert (await known(rig.agent(), ref("uid-0"))).data_seen is None
    await rig.agent().apply([finished(ref("bad"), snapshot_key="key-1")], NAME_A)
    assert (await known(rig.agent(), ref("bad"))).data_seen == "key-1"


async def test_a_durable_operation_is_begun_and_finished_under_its_lease(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    row = started(ref(), op=Op.PRESERVE)
    await ledger.begin(row, NAME_A, lease)
    await ledger.begin(row, NAME_A, lease)
    await ledger.finish(finished(ref(), after=Phase.PRESERVING, snapshot_key="key-1"), NAME_A, lease, release=False)
    facts = await known(ledger, ref())
    assert (facts.data_seen, facts.released) == ("key-1", False)


async def test_a_release_ends_the_life_and_late_rows_do_not_bring_it_back(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    await ledger.apply([finished(ref(), 1, snapshot_key="key-1")], NAME_A)
    await ledger.finish(finished(ref(), 2, at=200, after=Phase.REMOVED), NAME_A, lease, release=True)
    await ledger.apply([finished(ref(), 3, at=300, snapshot_key="key-2")], NAME_A)
    await ledger.finish(finished(ref(), 4, at=400), NAME_A, lease, release=False)
    facts = await known(ledger, ref())
    assert (facts.data_seen, facts.released) == ("key-1", True)
    assert (await rig.controller().read(ref(), LATEST)).released


async def test_a_finish_that_is_repeated_with_the_release_releases(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    await ledger.finish(finished(ref()), NAME_A, lease, release=False)
    await ledger.finish(finished(ref()), NAME_A, lease, release=True)
    await ledger.finish(finished(ref()), NAME_A, lease, release=True)
    assert (await known(ledger, ref())).released


# ---------------------------------------------------------------------------------------------- leases


async def test_a_lease_excludes_other_nodes_until_it_is_given_back(rig: Rig) -> None:
    lease = await rig.agent(NODE_A).acquire("key", TTL)
    with pytest.raises(LeaseBusy, match="holds it") as caught:
        await rig.agent(NODE_B).acquire("key", TTL)
    assert caught.value.reason is Reason.IN_PROGRESS
    assert NODE_A in caught.value.holder
    assert TTL - 10 < caught.value.expires_in <= TTL
    await rig.agent(NODE_A).release(lease)
    assert (await rig.agent(NODE_B).acquire("key", TTL)).fence > lease.fence


async def test_a_later_process_of_the_same_node_takes_over_at_once(rig: Rig) -> None:
    old = await rig.agent(NODE_A).acquire("key", TTL)
    new = await rig.agent(NODE_A).acquire("key", TTL)
    assert new.fence > old.fence
    assert new.token != old.token
    with pytest.raises(StaleFence):
        await rig.agent(NODE_A).renew(old, TTL)
    await rig.agent(NODE_A).release(old)
    assert (await rig.agent(NODE_A).renew(new, TTL)).fence == new.fence


async def test_another_node_takes_over_only_what_has_run_out(rig: Rig) -> None:
    old = await rig.agent(NODE_A).acquire("key", TTL)
    await rig.let_leases_run_out()
    new = await rig.agent(NODE_B).acquire("key", TTL)
    assert new.fence > old.fence
    with pytest.raises(StaleFence):
        await rig.agent(NODE_A).renew(old, TTL)
    await rig.agent(NODE_A).release(old)
    with pytest.raises(PortError, match="holds it"):
        await rig.agent(NODE_A).acquire("key", TTL)


async def test_a_lease_that_ran_out_is_renewed_while_nobody_took_it(rig: Rig) -> None:
    lease = await rig.agent().acquire("key", TTL)
    await rig.let_leases_run_out()
    with pytest.raises(StaleFence):
        await rig.agent().begin(started(ref()), NAME_A, lease)
    lease = await rig.agent().renew(lease, TTL)
    await rig.agent().begin(started(ref()), NAME_A, lease)


async def test_many_leases_are_renewed_together_and_only_those_that_are_still_ours(rig: Rig) -> None:
    ledger = rig.agent()
    leases = [await ledger.acquire(f"key-{n}", TTL) for n in range(4)]
    await rig.let_leases_run_out()
    await ledger.release(leases[1])
    await rig.agent(NODE_B).acquire("key-2", TTL)
    renewed = await ledger.renew_all(leases, TTL)
    assert [(lease.key, lease.fence) for lease in renewed] == [(leases[n].key, leases[n].fence) for n in (0, 3)]
    await ledger.begin(started(ref()), NAME_A, renewed[1])
    for lost in (leases[1], leases[2]):
        with pytest.raises(StaleFence):
            await ledger.begin(started(ref()), NAME_A, lost)
    assert await ledger.renew_all([], TTL) == ()


async def test_a_lease_that_was_given_back_is_not_renewed(rig: Rig) -> None:
    lease = await rig.agent().acquire("key", TTL)
    await rig.agent().release(lease)
    with pytest.raises(StaleFence):
        await rig.agent().renew(lease, TTL)


async def test_of_eight_nodes_that_race_for_a_lease_one_has_it(rig: Rig) -> None:
    nodes = [NodeId(f"node-{n}") for n in range(8)]
    fences = []
    for _ in range(10):
        results = await asyncio.gather(*(rig.agent(node).acquire("key", TTL) for node in nodes), return_exceptions=True)
        winners = [result for result in results if not isinstance(result, BaseException)]
        refusals = [result for result in results if isinstance(result, PortError)]
        assert (len(winners), len(refusals)) == (1, 7)
        fences.append(winners[0].fence)
        await rig.let_leases_run_out()
    assert fences == sorted(set(fences))


async def test_processes_of_one_node_that_race_leave_the_highest_fence_in_charge(rig: Rig) -> None:
    leases = await asyncio.gather(*(rig.agent().acquire("key", TTL) for _ in range(8)))
    newest = max(leases, key=lambda lease: lease.fence)
    assert len({lease.fence for lease in leases}) == 8
    for lease in leases:
        if lease is not newest:
            with pytest.raises(StaleFence):
                await rig.agent().begin(started(ref()), NAME_A, lease)
    await rig.agent().begin(started(ref()), NAME_A, newest)


async def test_nothing_is_written_under_a_lost_lease(rig: Rig) -> None:
    ledger = rig.agent(NODE_A)
    lost = await ledger.acquire("key", TTL)
    mine = await archived(ledger, ref(), lost, "operation-1")
    writing = await ledger.begin_archive(OperationId("operation-2"), ref(), workspace(ref()), NODE_A, lost)
    await rig.let_leases_run_out()
    await rig.agent(NODE_B).acquire("key", TTL)
    with pytest.raises(StaleFence):
        await ledger.begin(started(ref()), NAME_A, lost)
    with pytest.raises(StaleFence):
        await ledger.begin_archive(OperationId("operation-3"), ref(), workspace(ref()), NODE_A, lost)
    with pytest.raises(StaleFence):
        await ledger.finish_archive(archive(ref(), writing), lost)
    with pytest.raises(StaleFence):
        await ledger.mark_purging(ref(), mine.sequence, lost)
    with pytest.raises(StaleFence):
        await ledger.put_away(mine.sequence, lost)
    with pytest.raises(StaleFence):
        await ledger.finish(finished(ref(), snapshot_key="key-1"), NAME_A, lost, release=True)
    facts = await known(ledger, ref())
    assert facts == LedgerFacts(latest=mine, purgeable=(mine.sequence, writing))


# ---------------------------------------------------------------------------------------------- archives


async def test_an_archive_counts_once_it_is_verified(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    sequence = await ledger.begin_archive(OperationId("operation"), ref(), workspace(ref()), NODE_A, lease)
    assert await ledger.begin_archive(OperationId("operation"), ref(), workspace(ref()), NODE_A, lease) == sequence
    assert (await known(ledger, ref())).latest is None
    assert await rig.archives(ref()) == ()
    facts = archive(ref(), sequence)
    await ledger.finish_archive(facts, lease)
    await ledger.finish_archive(facts, lease)
    listed = replace(facts, object_name=f"br-bot-{sequence}")
    assert (await known(ledger, ref())).latest == listed
    assert list(await rig.archives(ref())) == [listed]


async def test_what_is_not_the_archive_being_written_is_not_entered(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    facts = await archived(ledger, ref(), lease, "operation")
    for wrong in (
        replace(facts, sha256="another"),
        replace(facts, uid=ref("another").uid),
        replace(facts, sequence=facts.sequence + 1),
    ):
        with pytest.raises(LedgerUnavailable, match="being written"):
            await ledger.finish_archive(wrong, lease)
    assert list(await rig.archives(ref())) == [facts]


async def test_latest_is_the_newest_that_is_not_empty_of_the_same_identity(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    await archived(ledger, ref("uid-1"), lease, "1")
    newest = await archived(ledger, ref("uid-2"), lease, "2")
    empty = await archived(ledger, ref("uid-3"), lease, "3", empty=True)
    await archived(ledger, ref("uid-4", name="other"), lease, "4")
    await archived(ledger, ref("uid-5", namespace_uid="ns-2"), lease, "5")
    facts = await known(ledger, ref("uid-9"))
    assert facts.latest == newest
    listed = await rig.archives(ref())
    assert [entry.uid for entry in listed] == ["uid-1", "uid-2", "uid-3"]
    assert listed[-1] == empty


async def test_a_runtime_is_bound_where_its_archive_is(rig: Rig) -> None:
    ledger, controller = rig.agent(), rig.controller()
    lease = await ledger.acquire("key", TTL)
    first = await archived(ledger, ref(), lease, "1", node=NODE_A)
    named = Restore(policy=RestorePolicy.ARCHIVE, archive=first.object_name)
    assert await controller.read(ref("uid-9"), LATEST) == BoundRow(None, None, False, NODE_A, True)
    assert await controller.read(ref("uid-9"), NONE) == BoundRow(None, None, False, None, False)
    await archived(ledger, ref(), lease, "2", node=None)
    assert await controller.read(ref("uid-9"), LATEST) == BoundRow(None, None, False, None, True)
    assert await controller.read(ref("uid-9"), named) == BoundRow(None, None, False, NODE_A, True)


async def test_an_archive_is_found_by_the_name_of_its_object_in_its_namespace(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    facts = await archived(ledger, ref(), lease, "1")
    named = Restore(policy=RestorePolicy.ARCHIVE, archive=facts.object_name)
    assert (await known(ledger, ref("uid-9", name="other"), named)).named == facts
    assert (await known(ledger, ref("uid-9", namespace_uid="ns-2"), named)).named is None
    assert (await known(ledger, ref("uid-9"), Restore(policy=RestorePolicy.ARCHIVE, archive="none"))).named is None
    assert (await known(ledger, ref("uid-9"), LATEST)).named is None


async def test_other_lives_with_data_that_nobody_archived_are_told(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    await ledger.apply([finished(ref("uid-1"), snapshot_key="key-1")], NAME_A)
    await ledger.apply([finished(ref("uid-2"))], NAME_A)
    await ledger.apply([finished(ref("uid-3", name="other"), snapshot_key="key-3")], NAME_A)
    assert (await known(ledger, ref("uid-9"))).unarchived == ("uid-1",)
    assert (await known(ledger, ref("uid-1"))).unarchived == ()
    await ledger.finish(finished(ref("uid-1"), 2), NAME_A, lease, release=True)
    assert (await known(ledger, ref("uid-9"))).unarchived == ()


async def test_data_of_an_object_that_was_given_up_is_still_an_orphan(rig: Rig) -> None:
    ledger, controller = rig.agent(), rig.controller()
    await ledger.apply([finished(ref("uid-1"), snapshot_key="key-1")], NAME_A)
    await controller.force_release(ref("uid-1"), "the node burnt down")
    await controller.force_release(ref("uid-1"), "the node burnt down")
    await controller.force_release(ref("uid-2"), "never seen")
    facts = await known(ledger, ref("uid-9"))
    assert facts.unarchived == ("uid-1",)
    assert set(facts.given_up) == {"uid-1", "uid-2"}
    assert (await known(ledger, ref("uid-1"))).given_up == ("uid-2",)
    assert (await known(ledger, ref("uid-9", name="other"))).given_up == ()
    assert not (await controller.read(ref("uid-1"), LATEST)).released


async def test_a_quarantined_archive_is_not_restored(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    facts = await archived(ledger, ref(), lease, "1")
    await ledger.quarantine(facts.sequence, "the hash is wrong")
    assert (await known(ledger, ref())).latest is None
    assert (await known(ledger, ref())).quarantined == facts.sequence
    assert (await known(ledger, ref(name="other"))).quarantined is None
    assert await rig.archives(ref()) == ()
    with pytest.raises(LedgerUnavailable):
        await ledger.finish_archive(facts, lease)
    assert await rig.controller().unpublished(10) == ()


async def test_data_that_was_put_away_is_known_until_newer_data_is(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    mine, other = await archived(ledger, ref(), lease, "1"), await archived(ledger, ref("uid-2"), lease, "2")
    key = mine.snapshot_key
    await ledger.apply([finished(ref(), snapshot_key=key)], NAME_A)
    assert (await known(ledger, ref())).put_away is None
    await ledger.put_away(mine.sequence, lease)
    await ledger.put_away(mine.sequence, lease)
    await ledger.put_away(other.sequence, lease)
    assert (await known(ledger, ref())).put_away == mine
    assert (await known(ledger, ref("uid-9"))).put_away is None
    await ledger.apply([finished(ref(), 2, at=102.0, snapshot_key="br-uid-1-9")], NAME_A)
    assert (await known(ledger, ref())).put_away is None


async def test_data_is_known_to_be_put_away_from_when_its_removal_was_announced_until_that_is_taken_back(
    rig: Rig,
) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    mine, other = await archived(ledger, ref(), lease, "1"), await archived(ledger, ref("uid-2"), lease, "2")
    key = mine.snapshot_key
    await ledger.apply([finished(ref(), snapshot_key=key)], NAME_A)
    for facts in (mine, other):
        await ledger.announce_removal(facts.sequence, lease)
        await ledger.announce_removal(facts.sequence, lease)
    assert (await known(ledger, ref())).put_away == mine
    assert (await known(ledger, ref("uid-9"))).unarchived == ()
    await ledger.take_removal_back(ref(), key, lease)
    await ledger.take_removal_back(ref(), key, lease)
    assert (await known(ledger, ref())).put_away is None
    assert (await known(ledger, ref("uid-9"))).unarchived == ("uid-1",)
    await ledger.announce_removal(mine.sequence, lease)
    await ledger.put_away(mine.sequence, lease)
    await ledger.take_removal_back(ref(), key, lease)
    assert (await known(ledger, ref())).put_away == mine, "it is gone, and that is not taken back"


async def test_only_the_removal_of_what_is_archived_is_announced_and_only_under_a_lease(rig: Rig) -> None:
    ledger = rig.agent()
    stale = await ledger.acquire("key", TTL)
    lease = await ledger.acquire("key", TTL)
    writing = await ledger.begin_archive(OperationId("1"), ref(), workspace(ref()), NODE_A, lease)
    good = await archived(ledger, ref(), lease, "2")
    for sequence in (writing, 4711):
        with pytest.raises(LedgerUnavailable):
            await ledger.announce_removal(sequence, lease)
    with pytest.raises(StaleFence):
        await ledger.announce_removal(good.sequence, stale)
    with pytest.raises(StaleFence):
        await ledger.take_removal_back(ref(), good.snapshot_key, stale)


async def test_what_was_begun_and_has_no_end_is_known(rig: Rig) -> None:
    ledger = rig.agent()
    await ledger.apply([started(ref(), 1, at=20), started(ref(), 2, at=10), started(ref("uid-2"), 3)], NAME_A)
    assert (await known(ledger, ref())).unfinished == ("uid-1/2", "uid-1/1")
    await ledger.apply([finished(ref(), 2)], NAME_A)
    assert (await known(ledger, ref())).unfinished == ("uid-1/1",)


async def test_only_a_verified_archive_can_have_data_put_away(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    writing = await ledger.begin_archive(OperationId("1"), ref(), workspace(ref()), NODE_A, lease)
    bad = await archived(ledger, ref(), lease, "2")
    await ledger.quarantine(bad.sequence, "the hash is wrong")
    for sequence in (writing, bad.sequence, 4711):
        with pytest.raises(LedgerUnavailable):
            await ledger.put_away(sequence, lease)


async def test_an_archive_that_the_catalogue_lost_is_entered_again_and_its_sequence_is_used_up(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    lost = archive(ref("gone"), 40)
    assert await ledger.catalogued(lost) is Catalogued.NOTHING
    for _ in range(2):
        done = await ledger.enter_archive(lost, ref("gone"), "request", NAME_A, lease, all_there_is=False)
        assert done is Catalogued.SAME
    assert await ledger.catalogued(lost) is Catalogued.SAME
    entered = replace(lost, object_name="br-bot-40")
    assert (await known(ledger, ref("new"))).latest == entered
    assert list(await rig.controller().unpublished(10)) == [entered]
    assert (await archived(ledger, ref(), lease, "later")).sequence > 40


async def test_what_the_catalogue_knows_is_never_changed_by_what_lies_in_a_store(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    verified, bad, purged = [await archived(ledger, ref(), lease, operation) for operation in "123"]
    await ledger.quarantine(bad.sequence, "the hash is wrong")
    await ledger.mark_purging(ref(), purged.sequence, lease)
    expected = {
        verified: Catalogued.SAME,
        replace(verified, sha256="0" * 64): Catalogued.OTHER,
        replace(verified, uid=ref("uid-2").uid): Catalogued.OTHER,
        bad: Catalogued.QUARANTINED,
        purged: Catalogued.PURGED,
        archive(ref(), 10**12): Catalogued.TOO_FAR,
    }
    before = await known(ledger, ref())
    for found, state in expected.items():
        assert await ledger.catalogued(found) is state
        assert await ledger.enter_archive(found, ref(), "request", NAME_A, lease, all_there_is=True) is state
    await ledger.mark_purged(purged.sequence)
    assert await ledger.catalogued(purged) is Catalogued.PURGED
    assert await known(ledger, ref()) == replace(before, purgeable=(verified.sequence, bad.sequence))


async def test_an_archive_that_was_being_written_when_the_backup_was_made_is_finished(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    sequence = await ledger.begin_archive(OperationId("1"), ref(), workspace(ref()), NODE_A, lease)
    found = archive(ref(), sequence)
    assert await ledger.catalogued(found) is Catalogued.UNFINISHED
    assert await ledger.enter_archive(found, ref(), "request", NAME_A, lease, all_there_is=False) is Catalogued.SAME
    facts = await known(ledger, ref())
    assert facts.latest is not None
    assert (facts.latest.sequence, facts.latest.sha256) == (sequence, found.sha256)


async def test_nobody_waits_for_a_life_of_which_nothing_but_an_archive_is_left(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    await ledger.apply([finished(ref("old"), snapshot_key=ref("old").snapshot_key(1))], NAME_A)
    assert (await known(ledger, ref("new"))).unarchived == ("old",)
    older, newer = archive(ref("old"), 7), replace(archive(ref("old"), 9), snapshot_key=ref("old").snapshot_key(3))
    await ledger.enter_archive(older, ref("old"), "request", NAME_A, lease, all_there_is=False)
    assert (await known(ledger, ref("new"))).unarchived == ("old",), "more of it may be on a node"
    await ledger.enter_archive(newer, ref("old"), "request", NAME_A, lease, all_there_is=True)
    facts = await known(ledger, ref("new"))
    assert facts.unarchived == ()
    assert facts.latest is not None
    assert facts.latest.sequence == 9


async def test_an_archive_is_entered_only_under_a_lease(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    await ledger.acquire("key", TTL)
    with pytest.raises(StaleFence):
        await ledger.enter_archive(archive(ref(), 7), ref(), "request", NAME_A, lease, all_there_is=True)
    assert await ledger.catalogued(archive(ref(), 7)) is Catalogued.NOTHING


async def test_a_purge_takes_everything_of_the_identity_but_what_is_retained(rig: Rig) -> None:
    ledger, controller = rig.agent(), rig.controller()
    lease = await ledger.acquire("key", TTL)
    verified, retained, bad, empty = [
        await archived(ledger, ref(), lease, operation, empty=operation == "4") for operation in ("1", "2", "3", "4")
    ]
    for life in (ref("uid-2"), ref(), ref("uid-9")):
        await controller.bind(life, NAME_A, NODE_A, "image:1")
    writing = await ledger.begin_archive(OperationId("5"), ref("uid-2"), workspace(ref("uid-2")), NODE_A, lease)
    await archived(ledger, ref("uid-3", name="other"), lease, "6")
    await ledger.quarantine(bad.sequence, "the hash is wrong")
    await controller.record_retained(ref().namespace_uid, retained.object_name, True)
    expected = [verified.sequence, bad.sequence, empty.sequence, writing]
    assert [facts.sequence for facts in await ledger.purgeable(ref())] == expected
    assert list((await known(ledger, ref("uid-9"))).purgeable) == expected
    assert (await known(ledger, ref("uid-9"))).spared == (retained.sequence,)
    with pytest.raises(PortError) as caught:
        await ledger.mark_purging(ref(), retained.sequence, lease)
    assert caught.value.reason is Reason.PURGE_FAILED
    for sequence in expected:
        await ledger.mark_purging(ref(), sequence, lease)
        await ledger.mark_purged(sequence)
    assert await ledger.purgeable(ref()) == ()
    assert [facts.sequence for facts in await rig.archives(ref())] == [retained.sequence]


async def test_a_purge_spares_what_a_later_object_of_the_same_name_has(rig: Rig) -> None:
    """The purge of the first hung; somebody took its finalizer off by hand and made the object anew."""
    ledger, controller = rig.agent(), rig.controller()
    first, second, third = ref("uid-1"), ref("uid-2"), ref("uid-3")
    for life in (first, second):
        await controller.bind(life, NAME_A, NODE_A, "image:1")
    lease = await ledger.acquire("key", TTL)
    older, newer = await archived(ledger, first, lease, "1"), await archived(ledger, second, lease, "2")
    assert [facts.sequence for facts in await ledger.purgeable(first)] == [older.sequence]
    assert list((await known(ledger, first)).purgeable) == [older.sequence]
    assert await ledger.spared(first) == {newer.sequence}
    with pytest.raises(PortError, match="marking archive") as caught:
        await ledger.mark_purging(first, newer.sequence, lease)
    assert caught.value.reason is Reason.PURGE_FAILED
    await ledger.mark_purging(first, older.sequence, lease)
    await ledger.mark_purged(older.sequence)
    assert await ledger.purgeable(first) == ()
    await controller.bind(third, NAME_A, NODE_A, "image:1")
    assert [facts.sequence for facts in await ledger.purgeable(third)] == [newer.sequence]
    assert await ledger.spared(third) == frozenset()


@pytest.mark.parametrize("bound", [(), ("uid-1",), ("uid-2",)], ids=str)
async def test_a_purge_spares_what_nobody_knows_to_be_of_an_older_life(rig: Rig, bound: tuple[str, ...]) -> None:
    """Bindings that a ledger lost when it was put back: which of the two lives was the later one is not known."""
    ledger, controller = rig.agent(), rig.controller()
    first, second = ref("uid-1"), ref("uid-2")
    for uid in bound:
        await controller.bind(ref(uid), NAME_A, NODE_A, "image:1")
    lease = await ledger.acquire("key", TTL)
    mine, other = await archived(ledger, first, lease, "1"), await archived(ledger, second, lease, "2")
    for life, takes, leaves in ((first, mine, other), (second, other, mine)):
        assert list(await ledger.purgeable(life)) == [takes]
        assert (await known(ledger, life)).purgeable == (takes.sequence,)
        assert (await known(ledger, life)).spared == (leaves.sequence,)
        assert await ledger.spared(life) == {leaves.sequence}
        with pytest.raises(PortError, match="marking archive") as caught:
            await ledger.mark_purging(life, leaves.sequence, lease)
        assert caught.value.reason is Reason.PURGE_FAILED
    assert list(await rig.archives(first)) == [mine, other]


async def test_an_identity_of_another_namespace_finds_nothing_whatever_uid_it_claims(rig: Rig) -> None:
    ledger, controller = rig.agent(), rig.controller()
    lease = await ledger.acquire("key", TTL)
    facts = await archived(ledger, ref("uid-1"), lease, "1")
    bad = await archived(ledger, ref("uid-1"), lease, "2")
    await ledger.quarantine(bad.sequence, "the hash is wrong")
    await ledger.apply([finished(ref("uid-2"), snapshot_key="key-1")], NAME_A)
    forged = ref("uid-9", namespace="team-b")
    named = Restore(policy=RestorePolicy.ARCHIVE, archive=facts.object_name)
    for restore in (LATEST, named):
        assert await known(ledger, forged, restore) == LedgerFacts()
        assert not (await controller.read(forged, restore)).archive_known
    assert await rig.archives(forged) == ()
    assert await ledger.purgeable(forged) == ()
    await ledger.announce_removal(facts.sequence, lease)
    of_that_life = ref("uid-1", namespace="team-b")
    await ledger.apply([finished(ref("uid-1"), snapshot_key=facts.snapshot_key)], NAME_A)
    assert (await known(ledger, of_that_life)).put_away is None
    await ledger.take_removal_back(of_that_life, facts.snapshot_key, lease)
    assert (await known(ledger, ref("uid-1"))).put_away == facts


async def test_a_purge_that_was_begun_is_finished_by_the_node_that_has_the_archive(rig: Rig) -> None:
    lease = await rig.agent(NODE_A).acquire("key", TTL)
    here, there, anywhere = [
        await archived(rig.agent(NODE_A), ref(), lease, str(node), node=node) for node in (NODE_A, NODE_B, None)
    ]
    with pytest.raises(PortError) as caught:
        await rig.agent(NODE_B).mark_purged(there.sequence)
    assert caught.value.reason is Reason.PURGE_FAILED
    for facts in (here, there, anywhere):
        await rig.agent(NODE_A).mark_purging(ref(), facts.sequence, lease)
        await rig.agent(NODE_A).mark_purging(ref(), facts.sequence, lease)
    assert list(await rig.agent(NODE_B).purging(NODE_B)) == [there, anywhere]
    assert list((await known(rig.agent(), ref())).purgeable) == [here.sequence, there.sequence, anywhere.sequence]
    assert (await known(rig.agent(), ref())).latest is None
    await rig.agent(NODE_B).mark_purged(there.sequence)
    await rig.agent(NODE_B).mark_purged(there.sequence)
    assert list(await rig.agent(NODE_B).purging(NODE_B)) == [anywhere]
    assert list((await known(rig.agent(), ref())).purgeable) == [here.sequence, anywhere.sequence]


async def test_an_operation_whose_archive_was_purged_under_it_begins_another(rig: Rig) -> None:
    ledger = rig.agent()
    lease = await ledger.acquire("key", TTL)
    first = await ledger.begin_archive(OperationId("operation"), ref(), workspace(ref()), NODE_A, lease)
    await ledger.mark_purging(ref(), first, lease)
    with pytest.raises(LedgerUnavailable, match="being written"):
        await ledger.finish_archive(archive(ref(), first), lease)
    second = await ledger.begin_archive(OperationId("operation"), ref(), workspace(ref()), NODE_A, lease)
    assert second > first
    await ledger.finish_archive(archive(ref(), second), lease)


async def test_a_purged_archive_is_gone_for_good_and_its_object_is_taken_down(rig: Rig) -> None:
    ledger, controller = rig.agent(), rig.controller()
    lease = await ledger.acquire("key", TTL)
    first, second = [await archived(ledger, ref(), lease, operation) for operation in ("1", "2")]
    await controller.published(first.sequence, first.object_name)
    for facts in (first, second):
        await ledger.mark_purging(ref(), facts.sequence, lease)
        assert await controller.purged(10) == ()
    for facts in (first, second):
        await ledger.mark_purged(facts.sequence)
        await ledger.quarantine(facts.sequence, "too late")
    assert (await known(ledger, ref())).latest is None
    assert list(await controller.purged(10)) == [first, second]
    assert list(await controller.purged(1)) == [first]
    await controller.unpublish(first.sequence)
    assert list(await controller.purged(10)) == [second]
    assert await controller.unpublished(10) == ()


async def test_verified_archives_are_published_once_oldest_first(rig: Rig) -> None:
    ledger, controller = rig.agent(), rig.controller()
    lease = await ledger.acquire("key", TTL)
    first, second = [await archived(ledger, ref(), lease, operation) for operation in ("1", "2")]
    await ledger.begin_archive(OperationId("3"), ref(), workspace(ref()), NODE_A, lease)
    assert list(await controller.unpublished(10)) == [first, second]
    assert list(await controller.unpublished(1)) == [first]
    await controller.published(first.sequence, first.object_name)
    assert list(await controller.unpublished(10)) == [second]


async def test_archives_without_their_objects_are_read_by_pages_and_of_one_life(rig: Rig) -> None:
    ledger, controller = rig.agent(), rig.controller()
    lease = await ledger.acquire("key", TTL)
    mine, other, also_mine = [
        await archived(ledger, of, lease, str(n)) for n, of in enumerate((ref(), ref("uid-2", name="other"), ref()))
    ]
    assert list(await controller.unpublished(2)) == [mine, other]
    assert list(await controller.unpublished(2, after=other.sequence)) == [also_mine]
    assert list(await controller.unpublished(1, of=ref("uid-2", name="other"))) == [other]
    assert list(await controller.unpublished(1, after=mine.sequence, of=ref())) == [also_mine]
    for facts in (mine, other, also_mine):
        await ledger.mark_purging(ref(facts.uid, name=facts.name), facts.sequence, lease)
        await ledger.mark_purged(facts.sequence)
    assert list(await controller.purged(2)) == [mine, other]
    assert list(await controller.purged(2, after=other.sequence)) == [also_mine]
    assert list(await controller.purged(1, of=ref("uid-9", name="other"))) == [other]
    assert list(await controller.purged(9, of=ref(namespace="team-b"))) == []


async def test_retain_is_carried_into_the_catalogue_and_back(rig: Rig) -> None:
    ledger, controller = rig.agent(), rig.controller()
    lease = await ledger.acquire("key", TTL)
    facts = await archived(ledger, ref(), lease, "1")
    namespace_uid = ref().namespace_uid
    for retain in (True, True, False):
        await controller.record_retained(namespace_uid, facts.object_name, retain)
        await controller.record_retained(NamespaceUid("other"), facts.object_name, not retain)
        assert [entry.retain for entry in await rig.archives(ref())] == [retain]
