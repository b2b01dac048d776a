"""The lab, once for each set of the reference plugins at hand."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.network.cni.lab import Lab

from rig.testrun import FURTHER_PLUGINS

DEBIAN = Path("/usr/lib/cni")


def _folders() -> list[Path]:
    return [DEBIAN, *(Path(folder) for folder in os.environ.get(FURTHER_PLUGINS, "").split(os.pathsep) if folder)]


@pytest.fixture(params=_folders(), ids=str)
def plugins(request: pytest.FixtureRequest) -> Path:
    folder = request.param
    assert isinstance(folder, Path)
    if not (folder / "bridge").exists():
        pytest.fail(f"no CNI plugins in {folder}; install containernetworking-plugins, or correct {FURTHER_PLUGINS}")
    return folder


@pytest.fixture
def lab(plugins: Path) -> Iterator[Lab]:
    built = Lab(Path(tempfile.mkdtemp(prefix="perdure-test-", dir="/run")), plugins)
    try:
        built.build()
        yield built
    finally:
        built.tear_down()
