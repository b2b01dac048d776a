"""Environment variables from values, Secrets, ConfigMaps and the object itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import pytest
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.property.worlds import Draw

from perdure.api.conditions import Reason
from perdure.api.runtime import EnvSource, EnvVar, FieldSelector, KeySelector, Runtime
from perdure.reconcile.environment import resolve
from perdure.reconcile.ports.errors import SourceError
from perdure.reconcile.ports.exec_limits import STRING_BYTES, TOTAL_BYTES


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


@pytest.mark.parametrize("source", [secret, config])
async def test_a_value_longer_than_any_variable_may_be_is_the_users_to_mend(
    state: ClusterState, source: Callable[[str, str], EnvVar]
) -> None:
    fits = "v" * (STRING_BYTES - len("X=\0"))
    state.secrets["agents", "large"] = {"most": fits.encode(), "more": b"v" * 2**20}
    state.config_maps["agents", "large"] = {"most": fits, "more": "v" * 2**20}
    assert await values(state, source("most", "large")) == {"X": fits}
    with pytest.raises(SourceError, match=f"env X takes {2**20 + 3} bytes.* {STRING_BYTES} at most") as caught:
        await values(state, source("more", "large"))
    assert (caught.value.reason, caught.value.user_error) == (Reason.INVALID_SPEC, True)


async def test_what_is_too_much_together_is_refused_where_it_becomes_too_much(state: ClusterState) -> None:
    state.secrets["agents", "large"] = {"most": b"v" * 100_000}
    variables = [msgspec.structs.replace(secret("most", "large"), name=f"V{n}") for n in range(512)]
    assert len(await values(state, *variables[:20])) == 20
    with pytest.raises(SourceError, match=f"up to env V20 take .* {TOTAL_BYTES} together") as caught:
        await values(state, *variables)
    assert (caught.value.reason, caught.value.user_error) == (Reason.INVALID_SPEC, True)


async def test_no_more_is_kept_of_large_secrets_than_could_be_used(state: ClusterState) -> None:
    """What is not named in the spec is dropped, what is named and large ends it before the next ones are read."""
    cluster, read = FakeCluster(state), []
    for n in range(64):
        state.secrets["agents", f"s{n}"] = {"small": b"v", "large": b"v" * 2**20, "unnamed": b"v" * 2**20}

    async def reading(namespace: str, name: str) -> Mapping[str, bytes]:
        read.append(name)
        return state.secrets[namespace, name]

    cluster.secret = reading  # type: ignore[method-assign]
    small = [msgspec.structs.replace(secret("small", f"s{n}"), name=f"S{n}") for n in range(64)]
    large = [msgspec.structs.replace(secret("large", f"s{n}"), name=f"L{n}") for n in range(64)]
    assert len((await resolve(runtime(*small), cluster)).values) == 64
    read.clear()
    with pytest.raises(SourceError, match="bytes with Secret s1,"):
        await resolve(runtime(*small, *large), cluster)
    assert read == ["s0", "s1"]


async def test_values_are_not_shown_by_accident(state: ClusterState) -> None:
    resolved = await resolve(runtime(secret("password")), FakeCluster(state))
    assert "geheim" not in repr(resolved)
