"""The cache of runtimes: newest version wins, and absence is kept apart from proof."""

from __future__ import annotations

from msgspec.structs import replace

from perdure.api.names import Kind, Uid
from perdure.api.runtime import Runtime, RuntimeSpec, RuntimeStatus
from perdure.kube.cache import ListDifference, RuntimeCache

A, B = Uid("a"), Uid("b")


def version(uid: Uid, number: int, kind: Kind = Kind.BOT) -> Runtime:
    return Runtime(
        kind=kind,
        namespace="ns",
        name=f"name-of-{uid}",
        uid=uid,
        generation=1,
        resource_version=str(number),
        labels={},
        annotations={},
        finalizers=(),
        deletion_timestamp=None,
        creation_timestamp="",
        spec=RuntimeSpec(image="i"),
        status=RuntimeStatus(),
    )


def number(cache: RuntimeCache, uid: Uid) -> int | None:
    found = cache.get(uid)
    return None if found is None else int(found.resource_version)


def test_an_older_version_never_replaces_a_newer_one() -> None:
    woken: list[Uid] = []
    cache = RuntimeCache(woken.append)
    cache.put(version(A, 10))
    cache.put(version(A, 9))
    cache.put(version(A, 10))
    cache.put(version(A, 100))
    assert number(cache, A) == 100
    assert woken == [A, A]


def test_a_write_of_our_own_wakes_nobody_but_what_others_changed_with_it_does() -> None:
    woken: list[Uid] = []
    cache = RuntimeCache(woken.append)
    cache.put(version(A, 10))
    cache.learn(replace(version(A, 11), status=RuntimeStatus(phase="Running")))
    cache.put(version(A, 11))
    cache.learn(version(A, 9))
    assert number(cache, A) == 11
    assert woken == [A]
    cache.learn(replace(version(A, 12), generation=2))
    assert number(cache, A) == 12
    assert woken == [A, A]
    cache.deleted(version(A, 13))
    cache.learn(version(A, 12))
    assert number(cache, A) is None, "an answer that was late brings nothing back"


def test_deletion_takes_it_away_and_an_echo_does_not_bring_it_back() -> None:
    woken: list[Uid] = []
    cache = RuntimeCache(woken.append)
    cache.put(version(A, 10))
    cache.deleted(version(A, 11))
    cache.put(version(A, 11))
    assert number(cache, A) is None
    assert cache.uids() == ()
    assert woken == [A, A]


def test_what_comes_back_into_the_selector_is_known_again() -> None:
    cache = RuntimeCache()
    cache.put(version(A, 10))
    cache.deleted(version(A, 11))
    cache.put(version(A, 12))
    cache.deleted(version(A, 11))
    assert number(cache, A) == 12


def test_list_brings_what_was_missed_and_takes_what_is_not_there() -> None:
    woken: list[Uid] = []
    cache = RuntimeCache(woken.append)
    cache.put(version(A, 10))
    cache.put(version(Uid("game"), 10, Kind.GAME))
    woken.clear()
    found = cache.compare(Kind.BOT, {B: version(B, 20)}, cache.mark())
    assert found == ListDifference(frozenset({B}), frozenset(), frozenset({A}), 1)
    assert set(cache.uids()) == {B, "game"}
    assert sorted(woken) == [A, B]


def test_list_of_an_etcd_that_was_put_back_is_right() -> None:
    cache = RuntimeCache()
    cache.put(version(A, 1000))
    found = cache.compare(Kind.BOT, {A: version(A, 400)}, cache.mark())
    assert found.changed == {A}
    assert number(cache, A) == 400


def test_what_was_written_while_the_list_was_read_is_newer() -> None:
    cache = RuntimeCache()
    mark = cache.mark()
    cache.put(version(A, 12))
    cache.put(version(B, 13))
    found = cache.compare(Kind.BOT, {A: version(A, 11)}, mark)
    assert found == ListDifference(frozenset(), frozenset(), frozenset(), 2)
    assert (number(cache, A), number(cache, B)) == (12, 13)


def test_same_list_again_changes_nothing() -> None:
    woken: list[Uid] = []
    cache = RuntimeCache(woken.append)
    listed = {A: version(A, 10)}
    cache.compare(Kind.BOT, listed, cache.mark())
    woken.clear()
    found = cache.compare(Kind.BOT, listed, cache.mark())
    assert found == ListDifference(frozenset(), frozenset(), frozenset(), 1)
    assert woken == []


def test_object_that_was_deleted_while_the_list_was_read_stays_away() -> None:
    cache = RuntimeCache()
    cache.put(version(A, 10))
    mark = cache.mark()
    cache.deleted(version(A, 11))
    cache.compare(Kind.BOT, {A: version(A, 10)}, mark)
    assert number(cache, A) is None
