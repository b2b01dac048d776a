"""Short image names made whole."""

from __future__ import annotations

import pytest

from perdure.engine.image_names import InvalidImageName, normalise

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("foo", "docker.io/library/foo:latest"),
        ("foo:1", "docker.io/library/foo:1"),
        ("team/foo", "docker.io/team/foo:latest"),
        ("docker.io/foo", "docker.io/library/foo:latest"),
        ("index.docker.io/foo", "docker.io/library/foo:latest"),
        ("localhost/foo", "localhost/foo:latest"),
        ("registry:5000/foo", "registry:5000/foo:latest"),
        ("registry.example/a/b_c/d--e:v1.2", "registry.example/a/b_c/d--e:v1.2"),
        (f"foo@{DIGEST}", f"docker.io/library/foo@{DIGEST}"),
        (f"registry.example/foo:1@{DIGEST}", f"registry.example/foo:1@{DIGEST}"),
        ("[::1]:5000/foo", "[::1]:5000/foo:latest"),
        (" foo ", "docker.io/library/foo:latest"),
        ("perdure.dev/samples/busybox:1", "perdure.dev/samples/busybox:1"),
    ],
)
def test_names_are_made_whole(text: str, full: str) -> None:
    assert normalise(text) == full
    assert normalise(full) == full


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "foo:",
        "Foo",
        "team/Foo",
        "foo bar",
        "foo@sha256:12",
        "foo@",
        "foo/",
        "/foo",
        "a//b",
        "foo:-x",
        "a" * 300,
    ],
)
def test_what_names_no_image_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(InvalidImageName, match="image"):
        normalise(text)
