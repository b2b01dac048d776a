"""Networks from a user's chair: ports that lead into runtimes, addresses that stay, who may talk to whom, the way out."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness import game_image
from tests.e2e.harness.machine import Machine, Stage, standalone
from tests.e2e.harness.outside import Outside, outside_host
from tests.e2e.harness.processes import Operator
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.waiting import eventually

from perdure.api.names import Kind
from rig.clients import Kubectl
from rig.progress import run

ECHO = ["/bin/sh", "-c", "exec nc -ll -p 9090 -e cat"]
HTTP = ["/bin/sh", "-c", "echo 'a world' > /data/index.html; exec httpd -f -p 8080 -h /data"]


@pytest.fixture(scope="module")
def stage(machine: Machine, new_operator: Callable[..., Operator]) -> Iterator[Stage]:
    """With IPv6 beside IPv4."""
    with standalone(machine, new_operator, dual_stack=True) as stage:
        yield stage


@pytest.fixture(scope="module", autouse=True)
def game(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> None:
    archive = game_image.write(tmp_path_factory.mktemp("game"))
    stage.site.engine.import_image(archive, stage.site.engine_namespace)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    with outside_host(tmp_path) as host:
        yield host


def port(name: str, container_port: int, protocol: str = "TCP", **more: Any) -> dict[str, Any]:
    return {"name": name, "containerPort": container_port, "protocol": protocol, **more}


def host_port(runtime: Runtime, name: str) -> int:
    """The number on the node, once the status has it."""

    def look() -> int:
        found = {entry["name"]: entry.get("hostPort", 0) for entry in runtime.status().get("ports", [])}
        return int(found.get(name, 0))

    return eventually(look, f"port {name} of {runtime.name} has a number", bool)


def answers(outside: Outside, number: int) -> str:
    """What the HTTP server behind a port says, once it listens."""

    def look() -> str:
        try:
            return outside.get(number)
        except OSError:
            return ""

    return eventually(look, f"somebody answers on port {number}", bool)


def conversation(outside: Outside, number: int) -> socket.socket:
    """A connection on which an echo has come back: it is open at both ends, and nobody gives it up for being idle."""

    def begin() -> socket.socket | None:
        try:
            connection = outside.connect(number)
        except OSError:
            return None
        try:
            if is_answered(connection, b"hello"):
                return connection
        except OSError:
            pass  # nobody listened yet behind the port
        connection.close()
        return None

    begun = eventually(begin, f"the echo answers on port {number}", lambda found: found is not None)
    assert begun is not None
    return begun


def is_answered(connection: socket.socket, message: bytes) -> bool:
    connection.sendall(message)
    return connection.recv(4096) == message


def test_game_servers_are_reached_through_ports_of_the_node(stage: Stage, kubectl: Kubectl, outside: Outside) -> None:
    web = stage.runtime(kubectl, "web", Kind.GAME, command=HTTP, ports=[port("http", 8080)]).apply()
    echo = stage.runtime(
        kubectl,
        "echo",
        Kind.GAME,
        image=game_image.NAME,
        command=game_image.udp_echo(9000),
        ports=[port("game", 9000, "UDP"), port("metrics", 9100, policy="None")],
    ).apply()
    web.wait_ready()
    echo.wait_ready()
    assert stage.site.first_port <= host_port(web, "http") <= stage.site.last_dynamic_port
    assert "a world" in answers(outside, host_port(web, "http"))

    def echoed() -> bytes:
        try:
            return outside.udp(host_port(echo, "game"), b"hello")
        except OSError:
            return b""

    assert eventually(echoed, "the echo comes back", bool) == b"echo hello"
    shown = {entry["name"]: entry for entry in echo.status()["ports"]}
    assert "hostPort" not in shown["metrics"]


def test_the_address_and_the_port_stay_over_a_crash_and_over_restarts_of_the_agent(
    stage: Stage, kubectl: Kubectl, outside: Outside
) -> None:
    web = stage.runtime(kubectl, "web", command=HTTP, ports=[port("http", 8080)]).apply().wait_ready()
    address, number = web.status()["address"], host_port(web, "http")
    answers(outside, number)

    killed = web.kill_main_process()
    web.wait_other_process(killed)
    web.wait_ready()
    assert (web.status()["address"], host_port(web, "http")) == (address, number)
    assert "a world" in answers(outside, number)

    echo = stage.runtime(kubectl, "echo", command=ECHO, ports=[port("echo", 9090)]).apply().wait_ready()
    with conversation(outside, host_port(echo, "echo")) as connection:
        stage.operator.kill()
        stage.operator.start()
        web.wait_ready()
        assert is_answered(connection, b"still here"), "a connection that was open outlives the agent"
    assert (web.status()["address"], host_port(web, "http")) == (address, number)

    web.patch(desiredState="Stopped")
    web.wait_phase("Stopped")
    assert "address" not in web.status()
    web.patch(desiredState="Running")
    web.wait_ready()
    assert (web.status()["address"], host_port(web, "http")) == (address, number)


def test_runtimes_talk_within_their_namespace_and_beyond_it_only_where_allowed(stage: Stage, kubectl: Kubectl) -> None:
    other = f"{kubectl.namespace}-b"
    stage.machine.kubectl()("create", "namespace", other)
    elsewhere = stage.machine.kubectl(other)
    try:
        web = stage.runtime(kubectl, "web", command=HTTP).apply()
        friend = stage.runtime(kubectl, "friend").apply()
        stranger = stage.runtime(elsewhere, "stranger").apply()
        for runtime in (web, friend, stranger):
            runtime.wait_ready()
        address = web.status()["address"]
        # Debian's static busybox has a wget that crashes where there are no name service libraries.
        fetch = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} 8080 || echo refused"
        eventually(lambda: friend.run(fetch), "a runtime of the same namespace gets in", lambda said: "a world" in said)
        assert "a world" not in stranger.run(fetch)

        web.patch(network={"policy": {"allowFrom": [{"namespace": other, "name": "stranger"}]}})
        eventually(lambda: stranger.run(fetch), "whom the policy names gets in", lambda said: "a world" in said)
        back = f"nc -w 2 {stranger.status()['address']} 1 < /dev/null && echo open || echo shut"
        assert "open" not in web.run(back)
        web.patch(network={"policy": {"allowFrom": None}})
        eventually(lambda: stranger.run(fetch), "and not any more", lambda said: "a world" not in said)
    finally:
        elsewhere.delete_objects()
        stage.machine.kubectl()("delete", "namespace", other, "--wait=false")


def test_a_runtime_reaches_the_world_and_not_its_node_nor_the_metadata_address(
    stage: Stage, kubectl: Kubectl, outside: Outside
) -> None:
    bot = stage.runtime(kubectl, "bot").apply().wait_ready()
    with outside.listen() as server:
        server.settimeout(60)
        number = server.getsockname()[1]
        bot.run(f"(echo hello from a bot; sleep 60) | nc -w 3 {outside.address} {number} > /dev/null 2>&1 &")
        connection, (source, _) = server.accept()
        with connection:
            connection.settimeout(10)
            assert connection.recv(100) == b"hello from a bot\n"
    assert source == outside.node, "the node's address is on what leaves it"
    gateway = run(["ip", "-4", "-o", "address", "show", "dev", stage.site.network.bridge], timeout=20).split()[3]
    with socket.create_server(("0.0.0.0", 0)) as agent:
        node_port = agent.getsockname()[1]
        for target in (gateway.partition("/")[0], outside.node):
            said = bot.run(f"nc -w 2 {target} {node_port} < /dev/null && echo open || echo shut")
            assert said.strip() == "shut", f"{target}:{node_port} of the node"
    assert "shut" in bot.run("nc -w 2 169.254.169.254 80 < /dev/null && echo open || echo shut")


def test_flushed_rules_come_back_and_nobody_is_disconnected(stage: Stage, kubectl: Kubectl, outside: Outside) -> None:
    web = stage.runtime(kubectl, "web", command=HTTP, ports=[port("http", 8080)]).apply().wait_ready()
    echo = stage.runtime(kubectl, "echo", command=ECHO, ports=[port("echo", 9090)]).apply().wait_ready()
    number = host_port(web, "http")
    answers(outside, number)
    killed = web.process()
    with conversation(outside, host_port(echo, "echo")) as connection:
        stage.operator.kill()
        stage.site.forget_port_rules(web.uid)
        stage.site.forget_port_rules(echo.uid)
        with pytest.raises(OSError, match=r"refused|timed out"):
            outside.get(number)
        stage.operator.start()
        assert "a world" in answers(outside, number)
        assert is_answered(connection, b"still here")
    assert web.process() == killed
    web.wait_condition("NetworkReady", "True")


def test_a_port_that_somebody_else_has_is_passed_over_before_it_is_published(
    stage: Stage, kubectl: Kubectl, outside: Outside
) -> None:
    first = stage.runtime(kubectl, "first", command=HTTP, ports=[port("http", 8080)]).apply().wait_ready()
    following = host_port(first, "http") + 1
    with socket.create_server(("0.0.0.0", following)):
        second = stage.runtime(kubectl, "second", command=HTTP, ports=[port("http", 8080)]).apply().wait_ready()
        assert host_port(second, "http") not in (following, host_port(first, "http"))
        assert "a world" in answers(outside, host_port(second, "http"))
        taken = port("http", 8080, policy="Static", hostPort=following)
        third = stage.runtime(kubectl, "third", command=HTTP, ports=[taken]).apply()
        said = third.wait_condition("NetworkReady", "False", "PortTaken")
        assert str(following) in said["message"]
    third.wait_ready()
    assert host_port(third, "http") == following


def test_ports_of_a_running_game_are_changed_and_nobody_is_disconnected(
    stage: Stage, kubectl: Kubectl, outside: Outside
) -> None:
    """Added, moved and taken out: what the status says is what another host finds."""
    both = ["/bin/sh", "-c", f"{HTTP[2].replace('httpd -f', 'httpd').replace('exec ', '')}; {ECHO[2]}"]
    web, talk = port("http", 8080), port("talk", 9090)
    game = stage.runtime(kubectl, "game", Kind.GAME, command=both, ports=[talk]).apply().wait_ready()
    address, process, talking = game.status()["address"], game.process(), host_port(game, "talk")
    first, second = stage.site.static_port(0), stage.site.static_port(1)

    def silent(number: int) -> bool:
        try:
            outside.connect(number).close()
        except OSError:
            return True
        return False

    with conversation(outside, talking) as connection:
        game.patch(ports=[talk, web | {"policy": "Static", "hostPort": first}])
        assert "a world" in answers(outside, first)
        game.patch(ports=[talk, web | {"policy": "Static", "hostPort": second}])
        assert "a world" in answers(outside, second)
        eventually(lambda: silent(first), "the number that it had leads nowhere", bool)
        game.patch(ports=[web | {"policy": "Static", "hostPort": second}])
        eventually(lambda: silent(talking), "the port that was taken out leads nowhere", bool)
        assert "a world" in answers(outside, second)
        assert is_answered(connection, b"still here")
    eventually(
        lambda: {entry["name"]: entry["hostPort"] for entry in game.status()["ports"]},
        "its status tells the port that is left",
        lambda told: told == {"http": second},
    )
    game.wait_condition("NetworkReady", "True")
    assert (game.status()["address"], game.process()) == (address, process)


def test_a_number_that_a_stopped_runtime_gives_up_leads_into_whoever_gets_it_next(
    stage: Stage, kubectl: Kubectl, outside: Outside
) -> None:
    number = stage.site.static_port(2)
    static = port("http", 8080, policy="Static", hostPort=number)
    former = stage.runtime(kubectl, "former", command=HTTP, ports=[static]).apply().wait_ready()
    assert "a world" in answers(outside, number)
    former.patch(desiredState="Stopped")
    former.wait_phase("Stopped")
    former.patch(ports=[])
    newer = ["/bin/sh", "-c", HTTP[2].replace("a world", "another world")]
    stage.runtime(kubectl, "next", command=newer, ports=[static]).apply().wait_ready()
    assert "another world" in answers(outside, number)
    former.patch(desiredState="Running")
    former.wait_ready()
    assert "another world" in answers(outside, number)


def test_nothing_of_a_network_is_left_of_a_purged_runtime(stage: Stage, kubectl: Kubectl) -> None:
    web = stage.runtime(kubectl, "web", command=HTTP, ports=[port("http", 8080)], deletionPolicy="Purge")
    web.apply().wait_ready()
    assert any(trace.startswith("network") for trace in stage.site.things_of(web.uid))
    web.delete_and_wait()
    web.wait_nothing_left()


def test_ipv6_beside_ipv4(stage: Stage, kubectl: Kubectl) -> None:
    web = stage.runtime(kubectl, "web", command=HTTP).apply().wait_ready()
    friend = stage.runtime(kubectl, "friend").apply().wait_ready()
    assert "." in web.status()["address"], "IPv4 is shown first"
    listed = web.run("cat /proc/net/if_inet6")
    (raw,) = (line.split()[0] for line in listed.splitlines() if line.startswith("fd00"))
    address = ":".join(raw[at : at + 4] for at in range(0, 32, 4))
    fetch = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} 8080 || echo refused"
    eventually(lambda: friend.run(fetch), "it answers on IPv6", lambda said: "a world" in said)
    gateway = run(
        ["ip", "-6", "-o", "address", "show", "dev", stage.site.network.bridge, "scope", "global"], timeout=20
    )
    said = web.run(f"nc -w 2 {gateway.split()[3].partition('/')[0]} 22 < /dev/null && echo open || echo shut")
    assert said.strip() == "shut"
