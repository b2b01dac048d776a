"""Requests to the API server: one session, deadlines on everything, and answers sorted into three kinds.

An answer is data, a refusal (`ApiRefused`: the server understood and says no), or nothing that can be relied on
(`ApiUnavailable`: no connection, no answer in time, 429, 5xx, or a 404 that is not about the object that was asked
for). The difference between the last two is what keeps an outage from being read as "it is gone".
Every other module of `perdure.kube` goes through this one, except the watches, which are kopf's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Self

import aiohttp
import msgspec

from perdure.kube.access import Access, ClusterSource, NoCluster, load_access
from perdure.reconcile.ports.errors import ApiUnavailable

REQUEST_SECONDS = 15.0
CONNECT_SECONDS = 3.0
CONNECTIONS = 8
"""At once. A request takes milliseconds, and so does the TLS handshake of each further connection: more of them only make
a burst dearer."""
CHUNK = 500
"""Objects per page of a list."""

Json = dict[str, Any]
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
_MERGE_PATCH = "application/merge-patch+json"
_JSON = "application/json"


class ApiRefused(Exception):
    """The server's no: a Status object (https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status).

    `code` is the HTTP status. `about` is the name in its details, `causes` are the machine-readable reasons in them.
    The message never holds what was sent.
    """

    def __init__(self, what: str, code: int, status: Mapping[str, Any]) -> None:
        details = status.get("details") or {}
        self.code = code
        self.reason = str(status.get("reason", ""))
        self.about = str(details.get("name", ""))
        self.kind = str(details.get("kind", ""))
        self.causes = tuple(
            (str(cause.get("reason", "")), str(cause.get("field", ""))) for cause in details.get("causes") or ()
        )
        self.text = str(status.get("message", ""))
        super().__init__(f"{what}: the API server refused ({code} {self.reason}): {self.text}")


class ApiClient:
    """A session with one API server. Use as an async context manager, or `open` and `close`.

    `deadline`: seconds for one request, answer included.
    """

    def __init__(self, source: ClusterSource, deadline: float = REQUEST_SECONDS) -> None:
        self._source = source
        self._access: Access | None = None
        self._session: aiohttp.ClientSession | None = None
        self._timeout = aiohttp.ClientTimeout(total=deadline, sock_connect=CONNECT_SECONDS)
        self._login = asyncio.Lock()
        self._retired: list[aiohttp.ClientSession] = []
        self._dated = ""

    @property
    def server(self) -> str:
        """The address, for messages."""
        return self._access.server if self._access else "(not connected)"

    @property
    def server_time(self) -> datetime | None:
        """When the newest answer was given, by the server's own clock (RFC 9110 section 6.6.1), in whole seconds. None
        before the first one, or where it does not say."""
        try:
            return parsedate_to_datetime(self._dated)
        except ValueError:
            return None

    async def open(self) -> None:
        """Read the configuration; nothing is sent yet. Raises `NoCluster`."""
        access = await load_access(self._source)
        connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=access.tls())
        self._access = access
        self._session = aiohttp.ClientSession(connector=connector, headers={"User-Agent": "perdure"})

    async def close(self) -> None:
        for session in (*self._retired, self._session):
            if session is not None:
                await session.close()
        self._retired, self._session, self._access = [], None, None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def get(self, path: str, what: str, params: Mapping[str, str] | None = None) -> Json:
        return await self._request("GET", path, what, params=params)

    async def post(self, path: str, what: str, body: Json) -> Json:
        return await self._request("POST", path, what, body=body)

    async def put(self, path: str, what: str, body: Json) -> Json:
        return await self._request("PUT", path, what, body=body)

    async def merge_patch(self, path: str, what: str, body: Json) -> Json:
        """RFC 7386: objects are merged, null removes, everything else (lists too) is replaced."""
        return await self._request("PATCH", path, what, body=body, content_type=_MERGE_PATCH)

    async def delete(self, path: str, what: str, uid: str) -> Json:
        """Delete exactly the object with this uid: another one of the same name is refused (409)."""
        return await self._request("DELETE", path, what, body=_delete_options(uid))

    async def pages(self, path: str, what: str, selector: str = "") -> AsyncIterator[list[Json]]:
        """A list, page by page, all of one resourceVersion. Raises rather than end early.

        A continue token that expired (410) is `ApiUnavailable`: what came before must not be taken for all there is.
        """
        params = {"limit": str(CHUNK)}
        if selector:
            params["labelSelector"] = selector
        while True:
            try:
                page = await self.get(path, what, params)
            except ApiRefused as refused:
                raise ApiUnavailable(f"{refused}; nothing is concluded from a list that could not be read") from refused
            items = page.get("items")
            if not isinstance(items, list):
                raise ApiUnavailable(f"{what}: the answer of {self.server} is no list")
            yield items
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return
            params["continue"] = token

    async def _request(
        self,
        method: Method,
        path: str,
        what: str,
        *,
        body: Json | None = None,
        content_type: str = _JSON,
        params: Mapping[str, str] | None = None,
    ) -> Json:
        """Send, and once again with fresh credentials if the server does not know us (401: a token that was rotated).

        `what` says for people what is being done to what. Raises `ApiRefused` or `ApiUnavailable`.
        """
        data = None if body is None else msgspec.json.encode(body)
        session = self._session
        code, content = await self._send(method, path, what, data, content_type, params)
        if code == 401:
            await self._log_in_again(session, what)
            code, content = await self._send(method, path, what, data, content_type, params)
        return self._sort(what, code, content)

    async def _send(
        self,
        method: Method,
        path: str,
        what: str,
        data: bytes | None,
        content_type: str,
        params: Mapping[str, str] | None,
    ) -> tuple[int, bytes]:
        if self._session is None or self._access is None:
            raise ApiUnavailable(f"{what}: not connected to an API server")
        access = self._access
        headers = {"Accept": _JSON, **await access.headers()}
        if data is not None:
            headers["Content-Type"] = content_type
        try:
            async with self._session.request(
                method,
                access.server + path,
                params=params,
                data=data,
                headers=headers,
                timeout=self._timeout,
                proxy=access.proxy,
                server_hostname=access.server_hostname,
            ) as response:
                self._dated = response.headers.get("Date", "")
                return response.status, await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            why = f"{type(error).__name__} {error}".strip()
            raise ApiUnavailable(f"{what}: no answer from the API server at {access.server} ({why})") from error

    async def _log_in_again(self, stale: aiohttp.ClientSession | None, what: str) -> None:
        async with self._login:
            if self._session is not stale:
                return  # another request did it meanwhile
            try:
                await self.open()
            except NoCluster as error:
                raise ApiUnavailable(f"{what}: the API server refuses our credentials, and {error}") from error
            for session in self._retired:
                await session.close()
            # Others may be in the middle of a request with it: it is closed at the next rotation, not now.
            self._retired = [stale] if stale is not None else []

    def _sort(self, what: str, code: int, content: bytes) -> Json:
        try:
            answer = msgspec.json.decode(content) if content else {}
        except msgspec.DecodeError:
            answer = None
        if 200 <= code < 300 and isinstance(answer, dict):
            return answer
        if not isinstance(answer, dict) or answer.get("kind") != "Status":
            # A proxy, a server that is starting, or a resource type that it does not serve (yet, or any more).
            raise ApiUnavailable(
                f"{what}: {self.server} answered {code} without saying why; "
                "if the CRDs are missing, run: kubectl apply -f crds/"
            )
        refused = ApiRefused(what, code, answer)
        if code in (401, 408, 410, 429) or code >= 500:
            raise ApiUnavailable(str(refused)) from refused
        if code == 404 and not refused.about:
            raise ApiUnavailable(
                f"{refused}; if the CRDs are missing, run: kubectl apply -f crds/",
            ) from refused
        raise refused


def _delete_options(uid: str) -> Json:
    return {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
