"""What the messages about missing data tell a person to do is done here, word by word: it must lead on, and no archive may
be lost on the way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

import pytest
from tests.crash.clock import JumpingLoop
from tests.crash.plant import Agency, Survivors
from tests.crash.stories import BY_NAME, KEY, SPEC, condition, delete, preserved, running, running_after, the

from perdure.api.names import ANNOTATION_FORCE_RELEASE
from perdure.api.runtime import Restore, RestorePolicy, RuntimeSpec, RuntimeStatus

SOON_SECONDS = 30.0
STEPS = 300
COMMAND = re.compile(r"`((?:kubectl|perdure) [^`]+)`")
Story = Callable[[Survivors], Awaitable[None]]


def told(story: Story) -> None:
    """A runtime with one archive, whose second life runs and then loses its data."""
    loop = JumpingLoop()

    async def run() -> None:
        survivors = Survivors(loop.time)
        process = Agency(survivors)
        process.begin()
        try:
            await _lose_the_second_life(survivors, process)
            await story(survivors)
        finally:
            await process.end()
        assert not survivors.defects

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


async def _lose_the_second_life(survivors: Survivors, process: Agency) -> None:
    survivors.cluster.create(*KEY, SPEC)
    await until(survivors, running)
    delete(survivors)
    await until(survivors, preserved(1))
    survivors.cluster.create(*KEY, SPEC)
    await until(survivors, running_after(2))
    for things in (survivors.machine.tasks, survivors.machine.containers, survivors.machine.snapshots):
        things.clear()
    await process.resync()
    await until(survivors, lambda s: condition(s, "DataReady") == ("False", "DataMissing"))


async def until(survivors: Survivors, goal: Callable[[Survivors], bool]) -> None:
    for _ in range(STEPS):
        if goal(survivors):
            return
        await asyncio.sleep(SOON_SECONDS / STEPS)
    runtime = the(survivors)
    pytest.fail(f"it did not come to that: {runtime.status if runtime is not None else 'the object is gone'}")


def message_of(survivors: Survivors, type_: str) -> str:
    runtime = the(survivors)
    assert runtime is not None
    return next(condition.message for condition in runtime.status.conditions if condition.type == type_)


def obey(survivors: Survivors, message: str) -> None:
    """Run the commands that a message names, in its order."""
    kind, namespace, name = KEY
    it = [kind.short, name, "-n", namespace]
    for command in COMMAND.findall(message):
        match command.split():
            case ["perdure", "archive", "ls", target, "-n", within]:
                assert (target, within) == (f"{kind.short}/{name}", namespace)
                assert [found for found in survivors.cluster.archives if found[0] == namespace]
            case ["kubectl", "annotate", *of, pair] if of == it:
                key, _, value = pair.partition("=")
                assert key == ANNOTATION_FORCE_RELEASE
                survivors.cluster.annotate(*KEY, {key: value})
            case ["kubectl", "delete", *of] if of == it:
                delete(survivors)
            case other:
                pytest.fail(f"nobody can run {other}")


def restoring(policy: RestorePolicy, archive: str | None = None) -> RuntimeSpec:
    return RuntimeSpec(image=SPEC.image, command=SPEC.command, restore=Restore(policy=policy, archive=archive))


async def goes_on_from_the_archive(survivors: Survivors) -> None:
    """The object is gone, the archive is there, and a new object is told how to come by it."""
    await until(survivors, lambda s: the(s) is None)
    assert len(survivors.cluster.archives) == len(survivors.store.archives) == 1
    survivors.cluster.create(*KEY, SPEC)
    await until(survivors, lambda s: condition(s, "Ready") == ("False", "OrphanPending"))
    message = message_of(survivors, "Ready")
    assert "nothing will archive it" in message
    advised = re.search(r"restore\.policy: (\w+) with restore\.archive: (\S+)", message)
    assert advised is not None
    assert message.index("restore.policy: Archive") < message.index("restore.policy: None")
    survivors.cluster.edit(*KEY, restoring(RestorePolicy(advised[1]), advised[2]))
    await until(survivors, running_after(3))
    runtime = the(survivors)
    assert runtime is not None
    assert runtime.status.restored_from == advised[2] == BY_NAME.restore.archive


def test_what_is_advised_about_missing_data_leads_to_the_last_archive() -> None:
    async def story(survivors: Survivors) -> None:
        message = message_of(survivors, "DataReady")
        assert message.index("annotate") < message.index("delete")
        assert "restore.policy: Archive" in message
        obey(survivors, message)
        await goes_on_from_the_archive(survivors)

    told(story)


def test_what_is_advised_when_the_journal_was_lost_too_leads_to_the_last_archive() -> None:
    async def story(survivors: Survivors) -> None:
        runtime = the(survivors)
        assert runtime is not None
        survivors.disk.records.clear()
        survivors.cluster.change(runtime, status=RuntimeStatus())
        await until(survivors, lambda s: condition(s, "DataReady") == ("False", "DataMissing"))
        assert message_of(survivors, "DataReady").startswith("the ledger shows")
        obey(survivors, message_of(survivors, "DataReady"))
        await goes_on_from_the_archive(survivors)

    told(story)


def test_what_is_advised_when_it_was_deleted_already_leads_to_the_last_archive() -> None:
    async def story(survivors: Survivors) -> None:
        delete(survivors)
        await until(survivors, lambda s: condition(s, "Preserved") == ("False", "DataMissing"))
        message = message_of(survivors, "Preserved")
        assert message.index(ANNOTATION_FORCE_RELEASE) < message.index(
            "Purge lets it go, too, and removes every archive"
        )
        obey(survivors, message)
        await goes_on_from_the_archive(survivors)

    told(story)


def test_a_deletion_of_missing_data_alone_waits_and_loses_no_archive() -> None:
    async def story(survivors: Survivors) -> None:
        delete(survivors)
        await asyncio.sleep(10 * SOON_SECONDS)
        assert the(survivors) is not None
        assert len(survivors.cluster.archives) == len(survivors.store.archives) == 1

    told(story)
