"""The CRDs on a real API server: what users see, and each rule with the message that they get for breaking it."""

import asyncio
from typing import Any

import pytest
from tests.integration.kube.conftest import IMAGE, User

from perdure.api.names import API_VERSION, ARCHIVE_KIND, Kind
from perdure.api.runtime import RuntimeSpec, RuntimeStatus
from perdure.kube import paths
from perdure.kube.archives import parse_archive
from perdure.kube.client import ApiRefused
from perdure.kube.objects import KubeControllerCluster
from rig.clients import Kubectl
from rig.controlplane import ControlPlane

pytestmark = pytest.mark.env


@pytest.fixture
def kubectl(control_plane: ControlPlane, user: User) -> Kubectl:
    return Kubectl(control_plane.admin_kubeconfig, user.namespace)


def static(name: str, number: int | None, protocol: str = "TCP") -> dict[str, Any]:
    plain = {"name": name, "containerPort": 80, "policy": "Static", "protocol": protocol}
    return plain if number is None else plain | {"hostPort": number}


TWICE = "two ports with policy Static ask for the same hostPort and protocol"
POLICY = "hostPort is required with policy Static, and forbidden with any other"

TCP: dict[str, Any] = {"tcpSocket": {"port": 80}}
ONE_ACTION = "a probe needs exactly one of exec, httpGet, tcpSocket, udpSocket"

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"image": ""}, "spec.image"),
    ({"image": "two words"}, "spec.image"),
    ({"image": "x" * 513}, "may not be more than 512"),
    ({"stoppedTTL": "-5s"}, "stoppedTTL"),
    ({"stoppedTTL": "soon"}, "stoppedTTL"),
    ({"stoppedTTL": ""}, "stoppedTTL"),
    ({"stoppedTTL": "87601h"}, "write Never"),
    ({"stoppedTTL": "999999999h"}, "stoppedTTL"),
    ({"desiredState": "Flying"}, 'supported values: "Running", "Stopped", "Removed"'),
    ({"imagePullPolicy": "Sometimes"}, "spec.imagePullPolicy"),
    ({"restartPolicy": "Maybe"}, "spec.restartPolicy"),
    ({"deletionPolicy": "Keep"}, "spec.deletionPolicy"),
    ({"network": {"mode": "host"}}, "spec.network.mode"),
    ({"workingDir": "relative"}, "spec.workingDir"),
    ({"user": "a b"}, "spec.user"),
    ({"minReadySeconds": -1}, "spec.minReadySeconds"),
    ({"stop": {"signal": "TERM"}}, "spec.stop.signal"),
    ({"stop": {"gracePeriodSeconds": -1}}, "spec.stop.gracePeriodSeconds"),
    ({"nodeName": "n" * 64}, "spec.nodeName"),
    ({"env": [{"name": "1A", "value": "x"}]}, "spec.env[0].name"),
    ({"env": [{"name": "A=B"}]}, "spec.env[0].name"),
    ({"env": [{"name": "A"}, {"name": "A"}]}, "Duplicate value"),
    ({"env": [{"name": "A", "valueFrom": {}}]}, "exactly one of secretKeyRef, configMapKeyRef, fieldRef"),
    (
        {"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]},
        "either value or valueFrom, not both",
    ),
    (
        {
            "env": [
                {
                    "name": "A",
                    "valueFrom": {
                        "fieldRef": {"fieldPath": "metadata.name"},
                        "secretKeyRef": {"name": "s", "key": "k"},
                    },
                }
            ]
        },
        "exactly one of secretKeyRef, configMapKeyRef, fieldRef",
    ),
    ({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]}, "fieldPath"),
    ({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "../x", "key": "k"}}}]}, "secretKeyRef.name"),
    ({"resources": {"requests": {"cpu": "0"}}}, "resources.requests.cpu must be more than 0"),
    ({"resources": {"requests": {"memory": 0}}}, "resources.requests.memory must be more than 0"),
    ({"resources": {"limits": {"cpu": "9m"}}}, "resources.limits.cpu must be at least 10m"),
    ({"resources": {"limits": {"memory": "31Mi"}}}, "resources.limits.memory must be at least 32Mi"),
    ({"resources": {"limits": {"memory": "1GB"}}}, "spec.resources.limits.memory"),
    ({"resources": {"limits": {"pids": 15}}}, "spec.resources.limits.pids"),
    ({"resources": {"requests": {"cpu": 2}}}, "resources.requests.cpu (default 100m) must not be more than"),
    ({"resources": {"limits": {"memory": "64Mi"}}}, "resources.requests.memory (default 128Mi) must not be more than"),
    ({"restore": {"policy": "Archive"}}, "restore.archive is required with restore.policy Archive"),
    ({"restore": {"archive": "br-one-1"}}, "forbidden with any other"),
    ({"network": {"dns": {"nameservers": ["ns.example.org"]}}}, "a name server is an IPv4 or IPv6 address"),
    ({"network": {"dns": {"nameservers": ["1.1.1.1"] * 4}}}, "must have at most 3 items"),
    ({"network": {"policy": {"allowFrom": [{"namespace": "a.b"}]}}}, "allowFrom[0].namespace"),
    ({"network": {"policy": {"allowFrom": [{"kind": "Pod"}]}}}, "allowFrom[0].kind"),
    ({"network": {"policy": {"allowFrom": [{}] * 65}}}, "must have at most 64 items"),
    ({"ports": [{"name": f"p{n}", "containerPort": 80} for n in range(200)]}, "must have at most 64 items"),
    ({"ports": [{"name": "Game", "containerPort": 80}]}, "spec.ports[0].name"),
    ({"ports": [{"name": "g" * 16, "containerPort": 80}]}, "spec.ports[0].name"),
    ({"ports": [{"name": "a", "containerPort": 80}, {"name": "a", "containerPort": 81}]}, "Duplicate value"),
    ({"ports": [{"name": "a", "containerPort": 0}]}, "spec.ports[0].containerPort"),
    ({"ports": [{"name": "a", "containerPort": 80, "protocol": "SCTP"}]}, "spec.ports[0].protocol"),
    ({"ports": [{"name": "a", "containerPort": 80, "policy": "Maybe"}]}, "spec.ports[0].policy"),
    ({"ports": [{"name": "a", "containerPort": 80, "hostPort": 7000}]}, POLICY),
    ({"ports": [{"name": "a", "containerPort": 80, "policy": "None", "hostPort": 7000}]}, POLICY),
    ({"ports": [static("a", None)]}, POLICY),
    ({"ports": [static("a", 65536)]}, "spec.ports[0].hostPort"),
    ({"ports": [static("a", 0)]}, "spec.ports[0].hostPort"),
    ({"ports": [static("a", 7000), static("b", 7000)]}, TWICE),
    ({"ports": [static("a", 7000, "TCPUDP"), static("b", 7000, "UDP")]}, TWICE),
    ({"readinessProbe": {}}, ONE_ACTION),
    ({"readinessProbe": TCP | {"exec": {"command": ["/bin/true"]}}}, ONE_ACTION),
    ({"livenessProbe": TCP | {"successThreshold": 2}}, "successThreshold must be 1 for startup and liveness probes"),
    ({"startupProbe": TCP | {"successThreshold": 2}}, "successThreshold must be 1 for startup and liveness probes"),
    ({"readinessProbe": TCP | {"terminationGracePeriodSeconds": 1}}, "is for startup and liveness probes"),
    ({"readinessProbe": TCP | {"timeoutSeconds": 0}}, "spec.readinessProbe.timeoutSeconds"),
    ({"readinessProbe": TCP | {"timeoutSeconds": 301}}, "spec.readinessProbe.timeoutSeconds"),
    ({"readinessProbe": TCP | {"periodSeconds": 0}}, "spec.readinessProbe.periodSeconds"),
    ({"readinessProbe": TCP | {"failureThreshold": 0}}, "spec.readinessProbe.failureThreshold"),
    ({"readinessProbe": TCP | {"initialDelaySeconds": -1}}, "spec.readinessProbe.initialDelaySeconds"),
    ({"readinessProbe": {"exec": {"command": []}}}, "spec.readinessProbe.exec.command"),
    ({"readinessProbe": {"tcpSocket": {}}}, "spec.readinessProbe.tcpSocket.port"),
    ({"readinessProbe": {"tcpSocket": {"port": 0}}}, "spec.readinessProbe.tcpSocket.port"),
    ({"readinessProbe": {"tcpSocket": {"port": 65536}}}, "spec.readinessProbe.tcpSocket.port"),
    ({"readinessProbe": {"tcpSocket": {"port": "Web"}}}, "spec.readinessProbe.tcpSocket.port"),
    ({"readinessProbe": {"httpGet": {"port": 80, "path": "healthz"}}}, "spec.readinessProbe.httpGet.path"),
    ({"readinessProbe": {"httpGet": {"port": 80, "path": "/ HTTP/1.1"}}}, "spec.readinessProbe.httpGet.path"),
    ({"readinessProbe": {"httpGet": {"port": 80, "scheme": "FTP"}}}, "spec.readinessProbe.httpGet.scheme"),
    (
        {"readinessProbe": {"httpGet": {"port": 80, "httpHeaders": [{"name": "a b", "value": "c"}]}}},
        "httpHeaders[0].name",
    ),
    (
        {"readinessProbe": {"httpGet": {"port": 80, "httpHeaders": [{"name": "A", "value": "b\r\nC: d"}]}}},
        "httpHeaders[0].value",
    ),
    ({"livenessProbe": {"udpSocket": {"port": 80, "payload": "not base64"}}}, "spec.livenessProbe.udpSocket.payload"),
    ({"hostAliases": [{"ip": "here", "hostnames": ["a"]}]}, "hostAliases.ip is an IPv4 or IPv6 address"),
    ({"hostAliases": [{"ip": "::1", "hostnames": []}]}, "spec.hostAliases[0].hostnames"),
    ({"hostAliases": [{"ip": "::1", "hostnames": ["a b"]}]}, "spec.hostAliases[0].hostnames[0]"),
]


@pytest.mark.parametrize(
    ("spec", "message"), REFUSED, ids=[f"{n} {message[:40]}" for n, (_, message) in enumerate(REFUSED)]
)
async def test_wrong_spec_is_refused_with_a_message(user: User, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiRefused) as caught:
        await user.create("bot", **spec)
    assert caught.value.code == 422
    assert message in caught.value.text


@pytest.mark.parametrize("name", ["with.dot", "n" * 64])
async def test_name_that_is_no_label_is_refused(user: User, kind: Kind, name: str) -> None:
    with pytest.raises(ApiRefused, match=r"metadata\.name must be a DNS label: at most 63 characters"):
        await user.create(name, kind)


async def test_spec_that_uses_everything_is_taken_as_it_is(user: User, kind: Kind) -> None:
    spec: dict[str, Any] = {
        "image": "registry.example.org:5000/a/b:1@sha256:" + "0" * 64,
        "imagePullPolicy": "Always",
        "command": ["sh", "-c"],
        "args": ["sleep 1"],
        "env": [
            {"name": "A", "value": "b"},
            {"name": "E"},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
            {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}},
        ],
        "workingDir": "/work",
        "user": "1000:1000",
        "resources": {
            "requests": {"cpu": 1, "memory": "1Gi"},
            "limits": {"cpu": "1500m", "memory": 2147483648, "pids": 16},
        },
        "desiredState": "Stopped",
        "restartPolicy": "Never",
        "stop": {"signal": "SIGRTMIN+3", "gracePeriodSeconds": 0},
        "deletionPolicy": "Purge",
        "restore": {"policy": "Archive", "archive": "br-one-1"},
        "minReadySeconds": 5,
        "network": {
            "mode": "cni",
            "policy": {"allowFrom": [{}, {"namespace": "other", "kind": "GameRuntime", "name": "castle"}]},
            "dns": {"nameservers": ["::1"], "searches": ["a.b"], "options": ["ndots:2"]},
        },
        "ports": [
            {"name": "game", "containerPort": 7777, "protocol": "TCPUDP"},
            static("rcon", 7777, "UDP"),
            static("query", 7777, "TCP"),
            {"name": "metrics", "containerPort": 9000, "policy": "None"},
        ],
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a", "b.c"]}],
        "nodeName": "n",
        "nodeSelector": {"a/b": "c"},
    }
    runtime = await user.create("bot", kind, **spec)
    assert runtime.invalid is None
    assert runtime.spec.resources.limits.memory == 2147483648
    assert runtime.spec.env[3].value_from is not None
    assert runtime.spec.stop.signal == "SIGRTMIN+3"


async def test_the_protocol_of_a_port_stays_and_all_else_of_it_may_change(user: User) -> None:
    runtime = await user.create("bot", ports=[{"name": "game", "containerPort": 80}])
    with pytest.raises(ApiRefused, match="the protocol of a port stays; take the port out"):
        await user.patch(runtime, {"spec": {"ports": [{"name": "game", "containerPort": 80, "protocol": "UDP"}]}})
    changed = await user.patch(runtime, {"spec": {"ports": [static("game", 7000), static("other", 7000, "UDP")]}})
    assert [(port.name, port.host_port) for port in changed.spec.ports] == [("game", 7000), ("other", 7000)]


async def test_defaults_of_the_server_are_those_of_the_code(user: User, kind: Kind) -> None:
    assert (await user.create("bot", kind)).spec == RuntimeSpec(image=IMAGE)


async def test_columns_show_what_a_person_looks_for(
    user: User, kubectl: Kubectl, kind: Kind, cluster: KubeControllerCluster
) -> None:
    runtime = await user.create("bot", kind)
    await cluster.write_status(runtime, RuntimeStatus(phase="Running", node_name="node-a", address="10.1.2.3"))
    plain = await asyncio.to_thread(kubectl, "get", kind.short)
    assert plain.split()[:7] == ["NAME", "PHASE", "READY", "NODE", "ADDRESS", "RESTARTS", "AGE"]
    assert plain.splitlines()[1].split()[:5] == ["bot", "Running", "node-a", "10.1.2.3", "0"]
    wide = await asyncio.to_thread(kubectl, "get", kind.short, "-o", "wide")
    assert wide.splitlines()[0].split()[7:] == ["IMAGE", "ARCHIVE", "EXPIRES", "REASON"]
    selected = await asyncio.to_thread(
        kubectl, "get", kind.short, "--field-selector=status.phase=Running", "-o", "name"
    )
    assert selected.strip() == f"{kind.value.lower()}.perdure.dev/bot"
    assert "bot" in await asyncio.to_thread(kubectl, "get", "perdure")


async def test_explain_tells_of_defaults_and_values(kubectl: Kubectl, kind: Kind) -> None:
    told = await asyncio.to_thread(kubectl, "explain", f"{kind.plural}.spec.desiredState")
    assert "ENUM:" in told
    assert "Removed" in told
    assert "cleaned up" in told
    probe = await asyncio.to_thread(kubectl, "explain", f"{kind.plural}.spec.livenessProbe.udpSocket")
    assert "any answer in time is success" in " ".join(probe.split())


async def test_archive_can_only_be_marked_to_be_retained(user: User) -> None:
    body = {
        "apiVersion": API_VERSION,
        "kind": ARCHIVE_KIND,
        "metadata": {"name": "br-bot-1"},
        "spec": {"source": {"kind": "BotRuntime", "name": "bot", "uid": "u"}},
    }
    path = paths.archive(user.namespace, "br-bot-1")
    made = parse_archive(await user.client.post(paths.archives(user.namespace), "creating", body))
    assert not made.spec.retain
    marked = await user.client.merge_patch(path, "marking", {"spec": {"retain": True}})
    assert parse_archive(marked).spec.retain
    with pytest.raises(ApiRefused, match=r"spec\.source is immutable"):
        await user.client.merge_patch(path, "changing", {"spec": {"source": {"uid": "another"}}})


CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/botruntimes.perdure.dev"


async def set_image_pattern(user: User, pattern: str, probe: str, *, accepted: bool) -> str:
    """Change the rule for images and wait until the server lives by it; returns the rule of before."""
    crd = await user.client.get(CRD, "reading the CRD")
    image = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["image"]
    before: str = image["pattern"]
    image["pattern"] = pattern
    await user.client.merge_patch(CRD, "changing a rule", {"spec": crd["spec"]})
    for attempt in range(1000):
        try:
            await user.delete(await user.create(f"{probe}-{attempt}"))
        except ApiRefused:
            if not accepted:
                return before
        else:
            if accepted:
                return before
    pytest.fail(f"the pattern {pattern} is not lived by")


async def test_object_that_breaks_a_later_rule_can_still_be_released(user: User) -> None:
    """Unchanged parts are not validated again (ratcheting), so a finalizer always comes off."""
    runtime = await user.patch(await user.create("bot"), {"metadata": {"finalizers": ["example.org/keep"]}})
    before = await set_image_pattern(user, "^never$", "refused", accepted=False)
    try:
        await user.delete(runtime)
        await user.patch(runtime, {"metadata": {"finalizers": None}})
    finally:
        await set_image_pattern(user, before, "accepted", accepted=True)
    with pytest.raises(ApiRefused, match="not found"):
        await user.read(runtime)
