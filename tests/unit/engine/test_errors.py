"""Answers of containerd told apart: what is evidence of absence, what is silence, what a user can mend."""

from __future__ import annotations

import grpc
import pytest

from perdure.api.conditions import Reason
from perdure.engine.containerd.errors import AlreadyExists, NotFound, RpcFailed, RpcTimeout, start_refusal, translate
from perdure.reconcile.ports.errors import EngineRefused, EngineUnavailable


def answer(code: grpc.StatusCode, text: str = "") -> EngineUnavailable | EngineRefused:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=text)
    return translate(error, "Snapshots.Stat", "/run/c.sock")


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.CANCELLED]
)
def test_a_containerd_that_is_away_or_broken_is_unavailable(code: grpc.StatusCode) -> None:
    error = answer(code, "unknown service containerd.services.snapshots.v1.Snapshots")
    assert isinstance(error, EngineUnavailable)
    assert error.reason is Reason.ENGINE_UNAVAILABLE
    assert "/run/c.sock" in str(error)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"),
        (grpc.StatusCode.UNKNOWN, "context deadline exceeded: unknown"),
    ],
)
def test_a_passed_deadline_is_a_timeout_whoever_noticed(code: grpc.StatusCode, text: str) -> None:
    assert isinstance(answer(code, text), RpcTimeout)


def test_codes_keep_their_meaning() -> None:
    assert isinstance(answer(grpc.StatusCode.NOT_FOUND), NotFound)
    assert isinstance(answer(grpc.StatusCode.ALREADY_EXISTS), AlreadyExists)
    assert type(answer(grpc.StatusCode.UNKNOWN, "x")) is RpcFailed


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("snapshot", "br-u-1", "snapshot br-u-1 does not exist: not found"),
        ("container", "br-u", 'container "br-u" in namespace "perdure": not found'),
        ("container", "br-u", "container br-u: not found"),
        ("task", "br-u", "task br-u not found: not found"),
        ("lease", "ws-br-u-1", 'lease "ws-br-u-1": not found'),
        ("image", "docker.io/library/foo:latest", 'image "docker.io/library/foo:latest": not found'),
    ],
)
def test_a_text_about_the_thing_itself_is_evidence(kind: str, name: str, text: str) -> None:
    error = answer(grpc.StatusCode.NOT_FOUND, text)
    assert isinstance(error, NotFound)
    assert error.is_about(kind, name)


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("snapshot", "br-u-1", "bucket does not exist: not found"),
        ("snapshot", "br-u-1", "snapshot does not exist: not found"),
        ("snapshot", "br-u-1", "snapshot perdure/12/br-u-1: not found"),
        ("snapshot", "br-u-1", "snapshot br-u-12 does not exist: not found"),
        ("snapshot", "br-u-1", "snapshotter not loaded: overlayfs: not found"),
        ("task", "br-u", 'container "br-u" in namespace "perdure": not found'),
        ("task", "br-u", "process br-u: not found"),
        ("container", "br-u", ""),
    ],
)
def test_a_text_about_anything_else_is_not(kind: str, name: str, text: str) -> None:
    error = answer(grpc.StatusCode.NOT_FOUND, text)
    assert isinstance(error, NotFound)
    assert not error.is_about(kind, name)


@pytest.mark.parametrize(
    ("text", "reason", "word"),
    [
        (
            "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container "
            'process: exec: "bot": executable file not found in $PATH: unknown',
            Reason.COMMAND_NOT_FOUND,
            "'bot' is not in the image",
        ),
        (
            'unable to start container process: exec: "/data": is a directory: unknown',
            Reason.COMMAND_NOT_FOUND,
            "folder",
        ),
        ('exec: "/etc/passwd": permission denied: unknown', Reason.COMMAND_NOT_FOUND, "may not be executed"),
        ("exec /app: exec format error", Reason.COMMAND_NOT_FOUND, "platform"),
        ("mkdir /etc/passwd/x: not a directory: unknown", Reason.INVALID_SPEC, "workingDir"),
    ],
)
def test_what_a_user_can_mend_is_said_so(text: str, reason: Reason, word: str) -> None:
    refusal = start_refusal(RpcFailed("Tasks.Create", grpc.StatusCode.UNKNOWN, text), "bot")
    assert (refusal.reason, refusal.user_error) == (reason, True)
    assert word in str(refusal)


def test_anything_else_is_tried_again() -> None:
    text = "failed to create shim task: OCI runtime create failed: cgroups: cannot allocate memory"
    refusal = start_refusal(RpcFailed("Tasks.Create", grpc.StatusCode.UNKNOWN, text), "bot")
    assert (refusal.reason, refusal.user_error) == (Reason.START_FAILED, False)
    assert "cannot allocate memory" in str(refusal)
