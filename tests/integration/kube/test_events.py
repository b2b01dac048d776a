"""Events as `kubectl describe` shows them."""

from typing import Any

import msgspec
import pytest
from tests.integration.kube.conftest import User

from perdure.api.runtime import Runtime
from perdure.kube import paths
from perdure.kube.client import ApiClient
from perdure.kube.events import EventRecorder

pytestmark = pytest.mark.env


async def events_of(user: User, runtime: Runtime) -> list[dict[str, Any]]:
    listed = await user.client.get(paths.events(user.namespace), "listing Events")
    return [event for event in listed["items"] if event["involvedObject"]["uid"] == runtime.uid]


async def test_same_words_are_one_event_with_a_count(client: ApiClient, user: User) -> None:
    recorder = EventRecorder(client, "perdure-agent", "node-a")
    runtime = await user.create("bot")
    for _ in range(3):
        await recorder.emit(runtime, reason="Start", message="it did not start", warning=True)
    await recorder.emit(runtime, reason="Start", message="it runs", warning=False)
    found = {event["message"]: event for event in await events_of(user, runtime)}
    assert found.keys() == {"it did not start", "it runs"}
    failed = found["it did not start"]
    assert (failed["count"], failed["type"], failed["reason"]) == (3, "Warning", "Start")
    assert (failed["reportingComponent"], failed["source"]["host"]) == ("perdure-agent", "node-a")
    assert found["it runs"]["type"] == "Normal"


async def test_event_that_expired_is_written_anew(client: ApiClient, user: User) -> None:
    recorder = EventRecorder(client, "perdure-agent", "node-a")
    runtime = await user.create("bot")
    await recorder.emit(runtime, reason="Start", message="it runs", warning=False)
    (event,) = await events_of(user, runtime)
    path = paths.event(user.namespace, event["metadata"]["name"])
    await user.client.delete(path, "deleting the Event", event["metadata"]["uid"])
    await recorder.emit(runtime, reason="Start", message="it runs", warning=False)
    (again,) = await events_of(user, runtime)
    assert again["count"] == 1


async def test_long_message_is_shortened_to_what_the_server_takes(client: ApiClient, user: User) -> None:
    runtime = await user.create("bot")
    await EventRecorder(client, "perdure-agent", "node-a").emit(
        runtime, reason="Start", message="x" * 5000, warning=True
    )
    (event,) = await events_of(user, runtime)
    assert event["message"] == "x" * 1024


async def test_event_that_is_refused_is_counted_and_not_raised(client: ApiClient, user: User) -> None:
    lost = 0

    def count() -> None:
        nonlocal lost
        lost += 1

    runtime = await user.create("bot")
    recorder = EventRecorder(client, "perdure-agent", "node-a", count)
    elsewhere = msgspec.structs.replace(runtime, namespace="nowhere")
    await recorder.emit(elsewhere, reason="Start", message="nobody is there", warning=False)
    assert lost == 1
