"""The node's random id, made once and kept in the state folder. Called when an agent starts, under `NodeLock`.

A machine that was replaced under the same name has another id, and no runtime of the old one is started there.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from perdure.api.names import NodeId
from perdure.journal.durable import create_synced, make_folder, sync_folder
from perdure.journal.errors import JournalFailed

FILE_NAME = "node-id"
_BYTES = 16
_FORM = re.compile(r"[0-9a-f]{32}")
"""128 random bits in hexadecimal: a label value that fits (Kubernetes allows 63 characters)."""


def node_id(state_dir: Path) -> NodeId:
    """The id of this node, made now if there is none. Raises `JournalFailed`, also when no random bytes can be had."""
    path = state_dir / FILE_NAME
    try:
        make_folder(state_dir)
        if not path.exists():
            _make(path)
        text = path.read_text(encoding="ascii").strip()
    except (OSError, NotImplementedError, UnicodeError) as error:
        raise JournalFailed(
            f"reading or making the node's id in {path}: {error}; the agent cannot say which node it is without it"
        ) from error
    if not _FORM.fullmatch(text):
        raise JournalFailed(
            f"reading the node's id in {path}: it holds {text[:40]!r}, not 32 hexadecimal digits. Put the id back that "
            "the RuntimeNode object of this node shows; a new one would make this another node"
        )
    return NodeId(text)


def _make(path: Path) -> None:
    temporary = path.with_name(f"{path.name}.new")
    os.close(create_synced(temporary, secrets.token_hex(_BYTES).encode() + b"\n"))
    temporary.rename(path)
    sync_folder(path.parent)
