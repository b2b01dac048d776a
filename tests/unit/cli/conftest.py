"""The commands read PERDURE_* and KUBECONFIG: a test sees those that it sets, not those of whoever runs it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("PERDURE_") or name == "KUBECONFIG":
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["perdure"])
    root = logging.getLogger()
    handlers, level, hook = root.handlers, root.level, sys.excepthook
    yield
    root.handlers, sys.excepthook = handlers, hook
    root.setLevel(level)
    structlog.reset_defaults()
