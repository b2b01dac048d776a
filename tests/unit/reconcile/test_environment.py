"""Environment variables from values, Secrets, ConfigMaps and the object itself."""

from __future__ import annotations

import msgspec
import pytest
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.property.worlds import Draw

from perdure.api.conditions import Reason
from perdure.api.runtime import EnvSource, EnvVar, FieldSelector, KeySelector, Runtime
from perdure.reconcile.environment import resolve
from perdure.reconcile.ports.errors import SourceError


@pytest.fixture
def state() -> ClusterState:
    state = ClusterState()
    state.secrets["agents", "login"] = {"password": b"geheim", "binary": b"\xff\xfe", "nul": b"a\0b"}
    state.config_maps["agents", "settings"] = {"level": "debug"}
    return state


def secret(key: str, name: str = "login", *, optional: bool = False) -> EnvVar:
    ref = KeySelector(name=name, key=key, optional=optional)
    return EnvVar(name="X", value_from=EnvSource(secret_key_ref=ref))


def config(key: str, name: str = "settings", *, optional: bool = False) -> EnvVar:
    ref = KeySelector(name=name, key=key, optional=optional)
    return EnvVar(name="X", value_from=EnvSource(config_map_key_ref=ref))


def field(path: str) -> EnvVar:
    return EnvVar(name="X", value_from=EnvSource(field_ref=FieldSelector(field_path=path)))


def runtime(*variables: EnvVar) -> Runtime:
    drawn = Draw(1).runtime(terminating=False)
    spec = msgspec.structs.replace(drawn.spec, env=variables)
    return msgspec.structs.replace(drawn, spec=spec, labels={**drawn.labels, "team": "red"})


async def values(state: ClusterState, *variables: EnvVar) -> dict[str, str]:
    return dict((await resolve(runtime(*variables), FakeCluster(state))).values)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        (EnvVar(name="X", value="plain"), "plain"),
        (EnvVar(name="X"), ""),
        (secret("password"), "geheim"),
        (config("level"), "debug"),
        (field("metadata.name"), "hermes"),
        (field("metadata.namespace"), "agents"),
        (field("metadata.uid"), "uid-1"),
        (field("spec.nodeName"), "node"),
        (field("metadata.labels['team']"), "red"),
        (field("metadata.annotations['none']"), ""),
    ],
)
async def test_a_variable_has_the_value_of_its_source(state: ClusterState, variable: EnvVar, value: str) -> None:
    assert await values(state, variable) == {"X": value}


async def test_a_later_variable_of_the_same_name_wins(state: ClusterState) -> None:
    assert await values(state, EnvVar(name="X", value="1"), EnvVar(name="X", value="2")) == {"X": "2"}


@pytest.mark.parametrize(
    "variable",
    [
        secret("password", "none", optional=True),
        secret("none", optional=True),
        config("level", "none", optional=True),
        config("none", optional=True),
    ],
)
async def test_an_optional_source_may_be_missing(state: ClusterState, variable: EnvVar) -> None:
    assert await values(state, variable) == {}


@pytest.mark.parametrize(
    "variable",
    [
        secret("password", "none"),
        secret("none"),
        config("level", "none"),
        config("none"),
        secret("binary"),
        secret("nul"),
    ],
)
async def test_a_source_that_is_missing_or_no_text_is_the_users_to_mend(state: ClusterState, variable: EnvVar) -> None:
    with pytest.raises(SourceError) as caught:
        await values(state, variable)
    assert caught.value.reason is Reason.ENV_SOURCE_MISSING
    assert caught.value.user_error
    assert "geheim" not in str(caught.value)


async def test_an_optional_source_that_may_not_be_read_is_not_taken_for_missing(state: ClusterState) -> None:
    state.forbidden.add("secrets")
    with pytest.raises(SourceError) as caught:
        await values(state, secret("password", optional=True))
    assert caught.value.reason is Reason.ENV_SOURCE_FORBIDDEN


async def test_a_field_that_is_not_offered_is_refused(state: ClusterState) -> None:
    with pytest.raises(SourceError, match=r"status\.podIP"):
        await values(state, field("status.podIP"))


async def test_values_are_not_shown_by_accident(state: ClusterState) -> None:
    resolved = await resolve(runtime(secret("password")), FakeCluster(state))
    assert "geheim" not in repr(resolved)
