"""An API server on loopback that says what a test wants, and a kubeconfig that leads to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Said = tuple[int, dict[str, Any]]
"""Status code and body."""


def no_patch(path: str, _body: dict[str, Any]) -> Said:
    return 405, {"kind": "Status", "code": 405, "reason": "MethodNotAllowed", "message": f"{path} is read here alone"}


@contextmanager
def serving(
    kubeconfig: Path,
    get: Callable[[str], Said],
    patch: Callable[[str, dict[str, Any]], Said] = no_patch,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[None]:
    """`get` and `patch` answer a path, with its query; `now`: the server's clock, for the header Date."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(*get(self.path))

        def do_PATCH(self) -> None:
            self._say(*patch(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def _say(self, code: int, body: dict[str, Any]) -> None:
            self.send_response_only(code)
            self.send_header("Date", format_datetime(now(), usegmt=True))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            """What was asked is for the test to remember."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        cluster = {"name": "a", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        context = {"name": "a", "context": {"cluster": "a", "user": "a"}}
        user = {"name": "a", "user": {"token": "t"}}
        kubeconfig.write_text(
            json.dumps({"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "a"})
        )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
