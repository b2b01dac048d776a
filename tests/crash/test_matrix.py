"""Kill the process at each of its calls, and let each call fail once: every story comes to the same end, and no promise
about data is broken on the way. Longer runs: `hack/chaos matrix`."""

from __future__ import annotations

import random
from functools import cache

import pytest
from tests.crash.matrix import End, Story, fail_points, kill_points, tell
from tests.crash.networked_stories import EVERY_STORY

DOUBLE_KILLS = 12
"""Per story; `hack/chaos matrix` tries many more."""

every_story = pytest.mark.parametrize("story", EVERY_STORY, ids=lambda story: story.name)


@cache
def undisturbed(story: Story) -> End:
    return tell(story)


@every_story
def test_a_story_comes_to_its_end(story: Story) -> None:
    assert undisturbed(story).summary == tell(story).summary


@every_story
def test_a_kill_at_any_call_changes_nothing_about_the_end(story: Story) -> None:
    expected = undisturbed(story)
    for n in kill_points(expected):
        assert tell(story, kill_at=(n,)).summary == expected.summary, f"killed at {n}: {expected.calls[n]}"


@every_story
def test_a_second_kill_on_the_way_back_changes_nothing_either(story: Story) -> None:
    expected, draw = undisturbed(story), random.Random(story.name)
    for _ in range(DOUBLE_KILLS):
        first = draw.choice(kill_points(expected))
        second = first + draw.randint(1, 25)
        assert tell(story, kill_at=(first, second)).summary == expected.summary, f"killed at {first} and {second}"


@every_story
def test_a_call_that_fails_once_changes_nothing_about_the_end(story: Story) -> None:
    expected = undisturbed(story)
    for n in fail_points(expected):
        assert tell(story, fail_at=n).summary == expected.summary, f"failed at {n}: {expected.calls[n]}"
