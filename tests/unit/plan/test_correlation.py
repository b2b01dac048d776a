"""Operations that one cause brings about share an id; others do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from tests.property.worlds import REF, Draw

from perdure.api.request import RequestId
from perdure.plan.operations import correlation
from perdure.plan.world import Desired, Gone, Observed, Record, Source, Terminating, Wanted, World


def world(desired: Desired, **record: Any) -> World:
    return World(REF, desired, Observed(), replace(Record(REF), **record))


def wanted(generation: int) -> Wanted:
    return Wanted(msgspec.structs.replace(Draw(1).runtime(terminating=False), generation=generation))


def of(told: World, source: Source = Source.KUBECTL, request: str | None = None) -> str:
    return correlation(told, source, RequestId(request) if request is not None else None)


def test_what_one_edit_brings_about_is_one_cause_and_the_next_edit_another() -> None:
    stop = of(world(wanted(2), operations=1))
    assert stop == of(world(wanted(2), operations=2, stopped_at=9.0))
    assert stop != of(world(wanted(3), operations=1))


def test_a_request_has_its_own_id() -> None:
    assert of(world(wanted(2)), Source.ADMIN_CLI, "7f3a") == "7f3a"


def test_a_deletion_is_one_cause_also_when_its_object_goes_early() -> None:
    deleting = of(world(Terminating(Draw(1).runtime(terminating=True))))
    assert deleting == of(world(Gone(), deletion_seen=True), Source.AUTO_RECONCILE)
    assert deleting != of(world(Gone(confirmed=True)), Source.AUTO_RECONCILE)


def test_a_restart_and_what_it_takes_to_come_about_are_one_cause_until_the_next_end() -> None:
    ended = of(world(wanted(2), started_at=5.0), Source.NODE_EVENT)
    assert ended == of(world(wanted(2), started_at=5.0, restarts=1), Source.AUTO_RECONCILE)
    assert ended != of(world(wanted(2), started_at=6.0, restarts=1), Source.NODE_EVENT)


def test_the_end_of_its_time_is_a_cause_for_each_stop() -> None:
    first = of(world(wanted(2), stopped_at=5.0), Source.AUTO_TTL)
    assert first == of(world(wanted(3), stopped_at=5.0), Source.AUTO_TTL)
    assert first != of(world(wanted(2), stopped_at=6.0), Source.AUTO_TTL)
