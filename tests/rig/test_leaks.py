"""The leak check names what is new, and leaves out what other environments own."""

from dataclasses import fields

from rig.leaks import Footprint, OtherEnvironment, leaked

NOTHING = Footprint(*(frozenset[str]() for _ in fields(Footprint)))
OTHER = OtherEnvironment("/home/me/env", "/run/perdure-env/0a1b2c3d", "0a1b2c3d")


def with_one(kind: str, name: str) -> Footprint:
    return Footprint(**{field.name: frozenset({name} if field.name == kind else ()) for field in fields(Footprint)})


def test_every_kind_of_thing_is_reported() -> None:
    for field in fields(Footprint):
        assert leaked(NOTHING, with_one(field.name, "x1")) == [f"{field.name.replace('_', ' ')}: x1"]


def test_what_was_there_before_or_went_away_is_no_leak() -> None:
    before = with_one("mounts", "/mnt")
    assert leaked(before, before) == []
    assert leaked(before, NOTHING) == []


def test_things_of_other_environments_are_left_out() -> None:
    for name in ("/home/me/env/containerd/root/x", "/run/perdure-env/0a1b2c3d/netns/y", "/perdure-env-0a1b2c3d"):
        assert leaked(NOTHING, with_one("mounts", name), [OTHER]) == []
        assert leaked(NOTHING, with_one("mounts", name)) != []


def test_this_machine_can_be_looked_at() -> None:
    footprint = Footprint.take()
    assert "/proc" in footprint.mounts
    assert "lo" in footprint.links
