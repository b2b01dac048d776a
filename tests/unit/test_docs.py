"""What is written down for readers agrees with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from perdure.api.names import API_VERSION
from perdure.api.phases import EDGES, Phase
from perdure.api.runtime import parse_runtime

CHECKOUT = Path(__file__).resolve().parents[2]
SAMPLES = sorted((CHECKOUT / "deploy" / "samples").glob("*.yaml"))


def test_the_page_about_phases_is_what_the_code_says() -> None:
    check = subprocess.run(
        [sys.executable, CHECKOUT / "hack" / "docs", "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert check.returncode == 0, check.stderr


def test_the_diagram_has_every_edge() -> None:
    page = (CHECKOUT / "docs" / "phases.md").read_text(encoding="utf-8")
    drawn = {(before, after) for before, after in re.findall(r"(\w+) --> (\w+)", page) if before != "Live"}
    live = {before for before in Phase if {Phase.PRESERVING, Phase.PURGING} <= EDGES[before]}
    drawn |= {(before, after) for before in live for after in re.findall(r"Live --> (\w+)", page)}
    assert drawn == {(before.value, after.value) for before in Phase for after in EDGES[before]}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_is_an_object_that_the_code_understands(path: Path) -> None:
    documents = [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]
    assert documents
    for document in documents:
        assert document["apiVersion"] == API_VERSION
        document["metadata"] |= {"namespace": "default", "uid": "0"}
        runtime = parse_runtime(document)
        assert runtime.invalid is None
        assert runtime.spec.image == "perdure.dev/samples/busybox:1"


def test_the_readme_shows_the_first_sample_as_it_is() -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert (CHECKOUT / "deploy" / "samples" / "botruntime.yaml").read_text(encoding="utf-8") in readme


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/ledger.md", "docs/operations.md"])
def test_links_lead_somewhere(page: str) -> None:
    """To files that are there, and to headings that are in them."""
    here = CHECKOUT / page
    links = re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", here.read_text(encoding="utf-8"))
    links = [(here.parent / target if target else here, heading) for target, heading in links if "://" not in target]
    assert links
    assert [link for link in links if not link[0].exists()] == []
    assert [link for link in links if link[1] and link[1] not in _headings(link[0])] == []


def _headings(page: Path) -> set[str]:
    """As links name them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}
