"""Answers of an API server that misbehaves: what can be relied on, and what proves nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from perdure.api.names import Kind, NamespaceUid, RuntimeRef, Uid
from perdure.kube.access import ClusterSource, NoCluster
from perdure.kube.client import ApiClient, ApiRefused
from perdure.kube.runtimes import RuntimeObjects
from perdure.plan.certainty import Absent, Unknown
from perdure.reconcile.ports.errors import ApiUnavailable

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
REF = RuntimeRef(Kind.BOT, "ns", "bot", Uid("u"), NamespaceUid("n"))


class Server:
    """Answers each request with the next of `answers`; the last one again and again."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[web.Request] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        following = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await following(request)


def status(code: int, reason: str = "", name: str = "", kind: str = "botruntimes", message: str = "no") -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        details = {"name": name, "kind": kind} if name else {}
        body = {"kind": "Status", "code": code, "reason": reason, "message": message, "details": details}
        return web.json_response(body, status=code)

    return answer


def plain(code: int, text: str = "404 page not found") -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=code, text=text)

    return answer


def page(names: list[str], token: str = "") -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        items = [
            {"kind": "BotRuntime", "metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": {"image": "i"}}
            for name in names
        ]
        return web.json_response({"kind": "BotRuntimeList", "metadata": {"continue": token}, "items": items})

    return answer


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    server = Server()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield server, f"http://{host}:{port}"
    await runner.cleanup()


def write_kubeconfig(path: Path, url: str, token: str = "first") -> None:
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": {"token": token}}],
            }
        )
    )


@pytest.fixture
async def client(server: tuple[Server, str], tmp_path: Path) -> AsyncIterator[ApiClient]:
    write_kubeconfig(tmp_path / "kubeconfig", server[1])
    async with ApiClient(ClusterSource(tmp_path / "kubeconfig"), deadline=2) as client:
        yield client


@pytest.mark.parametrize(
    "answer", [status(429), status(500), status(503), status(410), plain(404), plain(502), plain(200)]
)
async def test_what_is_no_answer_is_unavailable(server: tuple[Server, str], client: ApiClient, answer: Answer) -> None:
    server[0].answers = [answer]
    with pytest.raises(ApiUnavailable, match="reading it"):
        await client.get("/x", "reading it")


async def test_server_that_is_silent_is_given_up_after_the_deadline(server: tuple[Server, str], tmp_path: Path) -> None:
    async def silence(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError("nobody waits that long")

    server[0].answers = [silence]
    write_kubeconfig(tmp_path / "kubeconfig", server[1])
    async with ApiClient(ClusterSource(tmp_path / "kubeconfig"), deadline=0.1) as client:
        with pytest.raises(ApiUnavailable, match=server[1]):
            await client.get("/x", "reading it")


async def test_answer_that_is_cut_off_is_unavailable(server: tuple[Server, str], client: ApiClient) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"items": [')
        assert request.transport is not None
        request.transport.close()
        return response

    server[0].answers = [cut]
    with pytest.raises(ApiUnavailable):
        await client.get("/x", "reading it")


@pytest.mark.parametrize("code", [400, 403, 404, 409, 422])
async def test_refusal_says_what_was_done_and_what_the_server_said(
    server: tuple[Server, str], client: ApiClient, code: int
) -> None:
    server[0].answers = [status(code, "Because", name="bot", message="not like this")]
    with pytest.raises(ApiRefused, match=r"reading it.*not like this") as caught:
        await client.get("/x", "reading it")
    assert (caught.value.code, caught.value.about) == (code, "bot")


async def test_rotated_token_is_read_again_once(server: tuple[Server, str], client: ApiClient, tmp_path: Path) -> None:
    async def only_second(request: web.Request) -> web.StreamResponse:
        if request.headers["Authorization"] == "Bearer second":
            return web.json_response({"ok": True})
        return await status(401, "Unauthorized")(request)

    server[0].answers = [only_second]
    with pytest.raises(ApiUnavailable, match="401"):
        await client.get("/x", "reading it")
    write_kubeconfig(tmp_path / "kubeconfig", server[1], token="second")
    answers = await asyncio.gather(*(client.get("/x", "reading it") for _ in range(5)))
    assert answers == [{"ok": True}] * 5


@pytest.mark.parametrize(
    "answer",
    [
        plain(404),
        status(404, "NotFound"),
        status(404, "NotFound", name="other"),
        status(404, "NotFound", name="bot", kind="namespaces"),
        status(403, "Forbidden", name="bot"),
        status(500),
    ],
)
async def test_object_is_absent_only_if_the_server_says_so_of_this_object(
    server: tuple[Server, str], client: ApiClient, answer: Answer
) -> None:
    server[0].answers = [answer]
    assert isinstance(await RuntimeObjects(client).look_up(REF), Unknown)
    server[0].answers = [status(404, "NotFound", name="bot")]
    assert await RuntimeObjects(client).look_up(REF) == Absent()


async def test_list_is_read_page_by_page(server: tuple[Server, str], client: ApiClient) -> None:
    server[0].answers = [page(["a", "b"], "more"), page(["c"])]
    assert set(await RuntimeObjects(client, "a=b").list_uids(Kind.BOT)) == {"a", "b", "c"}
    first, second = server[0].requests
    assert dict(first.query) == {"limit": "500", "labelSelector": "a=b"}
    assert dict(second.query) == {"limit": "500", "labelSelector": "a=b", "continue": "more"}


@pytest.mark.parametrize(
    "second", [status(410, "Expired"), status(500), plain(404), status(403, name="x"), plain(200, "{}")]
)
async def test_list_that_breaks_off_is_no_list(server: tuple[Server, str], client: ApiClient, second: Answer) -> None:
    server[0].answers = [page(["a"], "more"), second]
    with pytest.raises(ApiUnavailable):
        await RuntimeObjects(client).list_uids(Kind.BOT)


async def test_item_that_is_no_runtime_spoils_the_list(server: tuple[Server, str], client: ApiClient) -> None:
    async def odd(request: web.Request) -> web.StreamResponse:
        return web.json_response({"items": [{"kind": "BotRuntime", "metadata": {"name": "nameless"}}]})

    server[0].answers = [odd]
    with pytest.raises(ApiUnavailable, match="no runtime"):
        await RuntimeObjects(client).list_uids(Kind.BOT)


async def test_kubeconfig_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    for content in (None, "{}", "apiVersion: v1\nkind: Config\ncurrent-context: gone\ncontexts: []\n", ":"):
        path = tmp_path / "kubeconfig"
        if content is not None:
            path.write_text(content)
        with pytest.raises(NoCluster, match=str(path)):
            await ApiClient(ClusterSource(path)).open()
