"""Answers of containerd that are no results, told apart, and turned into the errors of the port.

The rule that everything rests on: only a NOT_FOUND whose text names the thing asked for is read as "not there".
A containerd that lost a database answers UNIMPLEMENTED, or NOT_FOUND about a bucket; neither says anything about data.
"""

from __future__ import annotations

import re

import grpc

from perdure.api.conditions import Reason
from perdure.reconcile.ports.errors import EngineRefused, EngineUnavailable

_AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


class RpcTimeout(EngineUnavailable):
    """The call's deadline passed; nobody knows whether it took effect."""


class RpcFailed(EngineRefused):
    """containerd answered with an error. `text` is its own wording."""

    def __init__(self, method: str, code: grpc.StatusCode, text: str) -> None:
        super().__init__(f"containerd refused {method}: {code.name}: {text}", reason=Reason.INTERNAL_ERROR)
        self.method = method
        self.code = code
        self.text = text


class NotFound(RpcFailed):
    """Something that the call needs is not there; `is_about` says whether that is the thing itself."""

    def is_about(self, kind: str, name: str) -> bool:
        """Whether the text says that just the `kind` of that name is missing, rather than a bucket or another part.

        Texts: `snapshot <key> does not exist`, `container "<id>" in namespace "<ns>"`, `task <id> not found`,
        `image "<name>"`, `content digest <digest>`, `lease "<id>"` (metadata/ and services/tasks/local.go in containerd
        1.6, core/metadata and plugins/services in 2.x). A snapshotter that lost its own database names the key with
        `<namespace>/<number>/` before it; that is not about the key.
        """
        return re.search(rf'\b{kind} "?{re.escape(name)}"?(?![\w./-])', self.text) is not None


class AlreadyExists(RpcFailed):
    """Something of that name is there."""


class FailedPrecondition(RpcFailed):
    """The thing is there, but not in the state that the call needs."""


def translate(error: grpc.aio.AioRpcError, method: str, address: str) -> EngineUnavailable | RpcFailed:
    """The port's error for a failed call of `method`."""
    code, text = error.code(), error.details() or ""
    if code in _AWAY:
        return EngineUnavailable(
            f"containerd at {address} did not serve {method} ({code.name}: {text[:300]}); "
            "check that it runs and is healthy"
        )
    # The deadline travels with the call, so containerd or its shim may be the first to notice, in these words.
    if code is grpc.StatusCode.DEADLINE_EXCEEDED or text.startswith(("context deadline exceeded", "context canceled")):
        return RpcTimeout(f"containerd at {address} did not answer {method} in time; check its log and the node's load")
    kinds: dict[grpc.StatusCode, type[RpcFailed]] = {
        grpc.StatusCode.NOT_FOUND: NotFound,
        grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
        grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    }
    return kinds.get(code, RpcFailed)(method, code, text)


_EXECUTABLE = re.compile(r'exec: "(?P<name>[^"]*)": (?P<why>[^:]*)')


def start_refusal(error: RpcFailed, command: str) -> EngineRefused:
    """What runc said when it could not start `command`, in words a user can act on.

    Sources: texts of runc 1.1 (libcontainer/init_linux.go, Go's os/exec) as passed on by the shim.
    """
    text = error.text
    executable = _EXECUTABLE.search(text)
    if executable is not None:
        name = executable["name"] or command
        if "permission denied" in text:
            why, hint = "may not be executed by its user", "make it executable in the image or change `user`"
        elif "is a directory" in text:
            why, hint = "is a folder", "correct `command`"
        else:
            why, hint = "is not in the image", "correct `command`, `args` or `image`"
        return EngineRefused(
            f"cannot start the container: {name!r} {why}; {hint}", reason=Reason.COMMAND_NOT_FOUND, user_error=True
        )
    if "exec format error" in text:
        return EngineRefused(
            f"cannot start the container: {command!r} is no program for this machine (exec format error); "
            "a script needs a #! line, a program must be built for this platform",
            reason=Reason.COMMAND_NOT_FOUND,
            user_error=True,
        )
    if re.search(r"no such file or directory|not a directory", text) and re.search(r"chdir|cwd|mkdir", text):
        return EngineRefused(
            f"cannot start the container: its working directory cannot be entered ({text[-200:]}); "
            "correct `workingDir`",
            reason=Reason.INVALID_SPEC,
            user_error=True,
        )
    return EngineRefused(f"cannot start the container: {text[-600:]}", reason=Reason.START_FAILED)
