"""Where a first workspace's data comes from: the whole table."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from tests.property.worlds import KEYS, NODE, Draw

from perdure.api.conditions import Reason
from perdure.api.names import NodeId, Uid
from perdure.api.phases import Phase
from perdure.api.runtime import Restore, RestorePolicy, Runtime, RuntimeStatus
from perdure.plan.certainty import Absent, Certain, Present, Unknown
from perdure.plan.data_source import Fresh, FromArchive, Undecided, choose
from perdure.plan.world import LedgerFacts

ARCHIVE = replace(Draw(1).archive(), node_id=None)
LATEST = Restore()
NONE = Restore(policy=RestorePolicy.NONE)
NAMED = Restore(policy=RestorePolicy.ARCHIVE, archive="br-hermes-7")
AWAY = Unknown("connection refused")


def runtime(restore: Restore, snapshot_key: str | None = None) -> Runtime:
    drawn = Draw(1).runtime(terminating=False)
    spec = msgspec.structs.replace(drawn.spec, restore=restore)
    return msgspec.structs.replace(drawn, spec=spec, status=RuntimeStatus(snapshot_key=snapshot_key))


@pytest.mark.parametrize(
    ("restore", "facts"),
    [
        (LATEST, LedgerFacts()),
        (NONE, LedgerFacts()),
        (NONE, LedgerFacts(latest=ARCHIVE)),
        (NONE, LedgerFacts(unarchived=(Uid("uid-0"),))),
    ],
)
def test_fresh_data_where_nothing_is_to_be_brought_back(restore: Restore, facts: LedgerFacts) -> None:
    assert choose(runtime(restore), Present(facts)) == Fresh()


@pytest.mark.parametrize(
    ("restore", "facts"), [(LATEST, LedgerFacts(latest=ARCHIVE)), (NAMED, LedgerFacts(named=ARCHIVE))]
)
def test_an_archive_that_is_there_is_brought_back(restore: Restore, facts: LedgerFacts) -> None:
    assert choose(runtime(restore), Present(facts)) == FromArchive(ARCHIVE)
    here = replace(ARCHIVE, node_id=NODE)
    assert choose(runtime(restore), Present(replace(facts, latest=here, named=here))) == FromArchive(here)


@pytest.mark.parametrize(
    ("restore", "ledger", "reason", "phase"),
    [
        (LATEST, AWAY, Reason.LEDGER_UNAVAILABLE, Phase.PENDING),
        (NAMED, AWAY, Reason.LEDGER_UNAVAILABLE, Phase.PENDING),
        (LATEST, Absent(), Reason.LEDGER_UNAVAILABLE, Phase.PENDING),
        (LATEST, Present(LedgerFacts(data_seen=KEYS[0])), Reason.DATA_MISSING, Phase.BLOCKED),
        (NONE, Present(LedgerFacts(data_seen=KEYS[0])), Reason.DATA_MISSING, Phase.BLOCKED),
        (LATEST, Present(LedgerFacts(released=True)), Reason.IDENTITY_CHANGED, Phase.BLOCKED),
        (NAMED, Present(LedgerFacts()), Reason.ARCHIVE_NOT_FOUND, Phase.FAILED),
        (NAMED, Present(LedgerFacts(latest=ARCHIVE)), Reason.ARCHIVE_NOT_FOUND, Phase.FAILED),
        (LATEST, Present(LedgerFacts(unarchived=(Uid("uid-0"),))), Reason.ORPHAN_PENDING, Phase.PENDING),
        (
            LATEST,
            Present(LedgerFacts(latest=replace(ARCHIVE, node_id=NodeId("node-9")))),
            Reason.ARCHIVE_NOT_REACHABLE,
            Phase.PENDING,
        ),
    ],
)
def test_what_is_not_certain_is_waited_for(
    restore: Restore, ledger: Certain[LedgerFacts], reason: Reason, phase: Phase
) -> None:
    choice = choose(runtime(restore), ledger)
    assert isinstance(choice, Undecided)
    assert (choice.reason, choice.phase) == (reason, phase)
    assert len(choice.message) > 30


def told_about(facts: LedgerFacts) -> str:
    choice = choose(runtime(LATEST), Present(facts))
    assert isinstance(choice, Undecided)
    return choice.message


def test_data_that_was_released_by_force_is_not_said_to_be_archived_some_day() -> None:
    waiting = LedgerFacts(unarchived=(Uid("uid-0"), Uid("uid-1")), latest=ARCHIVE)
    message = told_about(replace(waiting, given_up=(Uid("uid-1"), Uid("uid-2"))))
    assert "uid-1" in message
    assert "nothing will archive it" in message
    assert "it is waited for" in told_about(replace(waiting, given_up=(Uid("uid-2"),)))


def test_who_waits_for_an_orphan_is_told_of_the_last_archive_first_and_of_none_where_there_is_none() -> None:
    waiting = LedgerFacts(unarchived=(Uid("uid-0"),))
    advice = told_about(replace(waiting, latest=replace(ARCHIVE, object_name="br-hermes-4")))
    assert "restore.policy: Archive with restore.archive: br-hermes-4" in advice.partition("restore.policy: None")[0]
    assert "restore.policy: Archive" not in told_about(waiting)


def test_policy_none_needs_no_ledger() -> None:
    assert choose(runtime(NONE), AWAY) == Fresh()


@pytest.mark.parametrize("ledger", [AWAY, Present(LedgerFacts())])
def test_a_status_that_shows_data_is_believed_against_everybody(ledger: Certain[LedgerFacts]) -> None:
    for restore in (LATEST, NONE):
        choice = choose(runtime(restore, "br-uid-1-1"), ledger)
        assert isinstance(choice, Undecided)
        assert (choice.reason, choice.phase) == (Reason.DATA_MISSING, Phase.BLOCKED)
