"""Probes and health events from a user's chair: what answers is Ready, what hangs is started again with its files, and the
ledger tells each of it once, whoever is killed meanwhile."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any

import pytest
from tests.e2e.harness import game_image
from tests.e2e.harness.machine import Stage
from tests.e2e.harness.runtimes import IMAGE, Runtime
from tests.e2e.harness.waiting import always, eventually

from perdure.api.names import Kind
from rig.clients import Kubectl

Told = list[tuple[str, str | None, int | None]]
Spec = dict[str, Any]

WAITS = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"
QUICK: Spec = {"periodSeconds": 1, "failureThreshold": 2, "timeoutSeconds": 5}
STARTED = ("container_started", None, None)
PERL = base64.b64encode(
    game_image.UDP_ECHO.format(family=2, address='pack("S n a4 x8", 2, 9000, "\\0" x 4)').encode()
).decode()


def sh(line: str) -> list[str]:
    return ["/bin/sh", "-c", line]


def command(line: str, **more: Any) -> Spec:
    return {"exec": {"command": sh(line)}, **QUICK, **more}


@dataclass(frozen=True, slots=True)
class Handler:
    """A probe, a server for it, and how that is made to answer and not to."""

    probe: Spec
    on: str
    off: str
    main: str = WAITS
    image: str = IMAGE
    more: Spec | None = None


HTTP = Handler(
    {"httpGet": {"port": "web", "path": "/index.html"}},
    "echo fine > /srv/index.html",
    "rm /srv/index.html",
    "mkdir -p /srv; exec httpd -f -p 8080 -h /srv",
    more={"ports": [{"name": "web", "containerPort": 8080, "policy": "None"}]},
)
HANDLERS = {
    "exec": Handler({"exec": {"command": ["test", "-e", "/data/fine"]}}, "touch /data/fine", "rm /data/fine"),
    "http": HTTP,
    "http without a network": Handler(
        {"httpGet": {"port": 8080, "path": "/index.html"}},
        HTTP.on,
        HTTP.off,
        HTTP.main,
        more={"network": {"mode": "none"}},
    ),
    "tcp": Handler({"tcpSocket": {"port": 9090}}, "nc -ll -p 9090 -e cat </dev/null >/dev/null 2>&1 &", "killall nc"),
    "udp": Handler(
        {"udpSocket": {"port": 9000, "payload": base64.b64encode(b"\xff\xff\xff\xffTSource").decode()}},
        f"echo {PERL} | base64 -d > /data/echo; perl /data/echo </dev/null >/dev/null 2>&1 &",
        "killall perl",
        image=game_image.NAME,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def game(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> None:
    archive = game_image.write(tmp_path_factory.mktemp("game"))
    stage.site.engine.import_image(archive, stage.site.engine_namespace)


def told(stage: Stage, runtime: Runtime, expected: Told) -> None:
    """The ledger has exactly these events of it, once they are all there. Those of one moment have no order."""
    seen = eventually(
        lambda: stage.ledger.health_events(runtime.uid),
        f"{runtime.name}: {expected}",
        lambda rows: rows[-1:] == expected[-1:],
    )
    assert sorted(seen, key=str) == sorted(expected, key=str)


def asked(stage: Stage, probe: str, result: str) -> int:
    """How often this process has asked such a probe with this result."""
    _, text = stage.operator.answer("metrics")
    found = re.search(rf'^perdure_probe_total{{probe="{probe}",result="{result}"}} (\S+)$', text, re.MULTILINE)
    return int(float(found[1])) if found else 0


@pytest.mark.parametrize("name", HANDLERS)
def test_ready_follows_the_readiness_probe(stage: Stage, kubectl: Kubectl, name: str) -> None:
    handler = HANDLERS[name]
    kind = Kind.GAME if name == "udp" else Kind.BOT
    made = stage.runtime(kubectl, "asked", kind, image=handler.image, command=sh(handler.main), **(handler.more or {}))
    runtime = made.apply(readinessProbe=handler.probe | QUICK)
    runtime.wait_condition("Ready", "False")
    process = eventually(runtime.pid, "its main process runs")
    assert runtime.wait_condition("Ready", "False")["reason"] in ("ProbePending", "ProbeFailed")
    runtime.wait_condition("Ready", "False", "ProbeFailed")
    runtime.run(handler.on)
    runtime.wait_ready()
    runtime.run(handler.off)
    failed = runtime.wait_condition("Ready", "False", "ProbeFailed")
    assert failed["message"].startswith("readiness probe failed: ")
    before, version = asked(stage, "readiness", "failure"), runtime.read()
    eventually(lambda: asked(stage, "readiness", "failure"), "it fails on", lambda times: times >= before + 3)
    assert runtime.read() == version, "an answer that changes nothing writes nothing"
    assert runtime.status()["phase"] == "Running"
    runtime.run(handler.on)
    runtime.wait_ready()
    assert runtime.pid() == process, "readiness restarts nothing"
    assert runtime.status()["restarts"] == 0
    pair: Told = [("probe_failed", "readiness", None), ("probe_recovered", "readiness", None)]
    told(stage, runtime, [STARTED, *pair, *pair])


def test_a_failed_liveness_probe_starts_it_again_with_its_files(stage: Stage, kubectl: Kubectl, kind: Kind) -> None:
    runtime = stage.runtime(kubectl, "lively", kind, command=sh(f"rm -f /data/broken; {WAITS}"))
    runtime.apply(livenessProbe=command("if [ -e /data/broken ]; then echo it is broken; exit 3; fi"))
    runtime.wait_ready()
    runtime.run("echo 'what a user wrote' > /data/notes; echo more > /root/notes")
    before = runtime.process()
    runtime.run("touch /data/broken")
    runtime.wait_other_process(before)
    runtime.wait_ready()
    assert runtime.run("cat /data/notes /root/notes") == "what a user wrote\nmore\n"
    status = runtime.status()
    assert status["restarts"] == 1
    assert status["lastExit"]["reason"] == "Unhealthy"
    told(stage, runtime, [STARTED, ("probe_failed", "liveness", None), STARTED, ("probe_recovered", "liveness", None)])
    assert ("restart", "Running", "Running", "success") in stage.ledger.edges(runtime.uid)


def test_nothing_else_is_asked_until_it_has_come_up(stage: Stage, kubectl: Kubectl) -> None:
    runtime = stage.runtime(kubectl, "slow", command=sh(WAITS))
    up = command("test -e /data/up", failureThreshold=1)
    runtime.apply(startupProbe=up | {"failureThreshold": 1000}, livenessProbe=up)
    pending = runtime.wait_condition("Ready", "False", "ProbePending")
    assert "startup" in pending["message"]
    process, before = runtime.process(), asked(stage, "startup", "failure")
    eventually(lambda: asked(stage, "startup", "failure"), "it is asked some times", lambda times: times >= before + 4)
    assert runtime.process() == process, "its liveness would have failed by now"
    runtime.run("touch /data/up")
    runtime.wait_ready()
    runtime.run("rm /data/up")
    runtime.wait_other_process(process)
    told(stage, runtime, [STARTED, ("probe_failed", "liveness", None), STARTED])


def test_ends_are_told_if_nobody_asked_for_them(stage: Stage, kubectl: Kubectl) -> None:
    runtime = stage.runtime(kubectl, "mortal", command=sh(WAITS)).apply().wait_ready()
    runtime.wait_other_process(runtime.kill_main_process())
    runtime.wait_ready()
    crash: Told = [STARTED, ("container_exited", None, 137), STARTED]
    told(stage, runtime, crash)
    runtime.apply(args=["another"])
    eventually(lambda: stage.ledger.health_events(runtime.uid), "the edit restarts it", lambda rows: len(rows) > 3)
    runtime.apply(desiredState="Stopped").wait_phase("Stopped")
    runtime.delete_and_wait()
    told(stage, runtime, [*crash, STARTED])


def test_a_process_that_was_killed_for_memory_is_told_so(stage: Stage, kubectl: Kubectl) -> None:
    line = f"if [ ! -e /data/once ]; then touch /data/once; exec tail /dev/zero; fi; {WAITS}"
    runtime = stage.runtime(kubectl, "hungry", command=sh(line)).apply()
    eventually(runtime.status, "it was started again", lambda status: status.get("restarts") == 1)
    runtime.wait_ready()
    told(stage, runtime, [STARTED, ("container_oom", None, None), ("container_exited", None, 137), STARTED])


def test_a_child_that_was_killed_for_memory_is_told_too(stage: Stage, kubectl: Kubectl) -> None:
    runtime = stage.runtime(kubectl, "parent", command=sh(WAITS)).apply().wait_ready()
    process = runtime.process()
    runtime.run("tail /dev/zero || true")
    told(stage, runtime, [STARTED, ("container_oom", None, None)])
    assert runtime.process() == process
    runtime.wait_ready()


def test_probes_that_hang_delay_no_other(stage: Stage, kubectl: Kubectl) -> None:
    hanging = {
        "exec": {"command": ["sleep", "3600"]},
        "periodSeconds": 1,
        "timeoutSeconds": 30,
        "failureThreshold": 100,
    }
    stuck = [stage.runtime(kubectl, f"stuck-{n}", command=sh(WAITS), readinessProbe=hanging).apply() for n in range(3)]
    for runtime in stuck:
        runtime.wait_condition("Ready", "False", "ProbePending")
    runtime = stage.runtime(kubectl, "fine", command=sh(WAITS), readinessProbe=command("exit 0")).apply()
    runtime.wait_ready(20)
    for runtime in stuck:
        assert runtime.condition("Ready")["reason"] == "ProbePending"


def test_a_killed_agent_changes_nothing_that_was_known(stage: Stage, kubectl: Kubectl) -> None:
    fine = stage.runtime(kubectl, "fine", command=sh(WAITS)).apply(
        readinessProbe=command("test ! -e /data/off"), livenessProbe=command("exit 0")
    )
    broken = stage.runtime(kubectl, "broken", command=sh(WAITS)).apply(readinessProbe=command("exit 1"))
    hanging = {"exec": {"command": sh("sleep 4711 & sleep 4712")}, "timeoutSeconds": 300}
    stuck = stage.runtime(kubectl, "stuck", command=sh(WAITS)).apply(readinessProbe=hanging)
    fine.wait_ready()
    broken.wait_condition("Ready", "False", "ProbeFailed")
    eventually(lambda: stuck.run("ps"), "its probe hangs", lambda text: "sleep 4711" in text)
    everyone = (fine, broken, stuck)
    processes = [runtime.process() for runtime in everyone]
    before = [runtime.condition("Ready") for runtime in everyone]
    events = [stage.ledger.health_events(runtime.uid) for runtime in everyone]

    stage.operator.kill()
    stage.operator.start()

    def has_asked() -> bool:
        return asked(stage, "readiness", "success") > 0 and asked(stage, "readiness", "failure") > 0

    always(
        lambda: [runtime.condition("Ready") for runtime in everyone],
        "what the status says of them stays",
        lambda seen: seen == before,
        until=has_asked,
    )
    assert [runtime.process() for runtime in everyone] == processes
    assert [stage.ledger.health_events(runtime.uid) for runtime in everyone] == events
    left = eventually(
        lambda: stuck.run("ps"), "only the new agent's probe hangs", lambda text: text.count("sleep 4711") == 1
    )
    assert left.count("sleep 4712") == 1
    fine.run("touch /data/off")
    fine.wait_condition("Ready", "False", "ProbeFailed")


def test_a_probe_of_a_port_that_has_no_such_name_is_said_to_be_wrong(stage: Stage, kubectl: Kubectl) -> None:
    runtime = stage.runtime(
        kubectl, "wrong", command=sh(WAITS), livenessProbe={"tcpSocket": {"port": "nobody"}}
    ).apply()
    condition = runtime.wait_condition("Ready", "False", "InvalidSpec")
    assert "no port is named 'nobody'" in condition["message"]
    runtime.patch(livenessProbe={"tcpSocket": {"port": 1}, "initialDelaySeconds": 3600})
    runtime.wait_ready()
