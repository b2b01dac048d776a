"""Plugins of the tests' own: shell scripts that do what a plugin should never do, and one that only writes down."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from perdure.network.cni.configuration import Network, parse

RESULT = (
    '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/ns"}], '
    '"ips": [{"address": "10.1.0.5/16", "interface": 0}]}'
)


def script(folder: Path, name: str, body: str) -> Path:
    """An executable plugin; `$calls` in its body is a file beside it."""
    path = folder / name
    path.write_text(f"#!/bin/sh\ncalls={folder}/calls\n{body}\n")
    path.chmod(0o755)
    return path


def recorder(folder: Path, name: str, answer: str = RESULT, more: str = "") -> Path:
    """Appends its command, name, container id, namespace and input to `calls`, then answers an ADD."""
    body = f"""input=$(cat)
printf '%s\\t%s\\t%s\\t%s\\t%s\\n' "$CNI_COMMAND" {name} "$CNI_CONTAINERID" "$CNI_NETNS" "$input" >>$calls
{more}
[ "$CNI_COMMAND" = ADD ] && printf '%s' '{answer}'
exit 0"""
    return script(folder, name, body)


def port_keeper(folder: Path, name: str) -> Path:
    """Leads the ports in that an ADD is given, and leads out those alone that a DEL is given: `led_in` has what is left.

    With a file `stop-ADD` or `stop-DEL` beside it that command does half of its work, then writes to the pipe `begun` and
    waits to be killed; with `fail-DEL` a DEL does nothing and fails."""
    os.mkfifo(folder / "begun")
    (folder / "led-in").mkdir()
    body = f"""input=$(cat)
[ $CNI_COMMAND = DEL ] && [ -e {folder}/fail-DEL ] && {{ echo '{{"code": 100, "msg": "busy"}}'; exit 1; }}
for port in $(printf '%s' "$input" | grep -o '"hostPort":[0-9]*' | cut -d: -f2); do
  case $CNI_COMMAND in ADD) touch {folder}/led-in/$port ;; DEL) rm -f {folder}/led-in/$port ;; esac
  [ -e {folder}/stop-$CNI_COMMAND ] && {{ echo >{folder}/begun; exec sleep 1000; }}
done
[ $CNI_COMMAND = ADD ] && printf '%s' "$input" | tr -d '\\n' | sed 's/.*"prevResult":\\(.*\\)}}$/\\1/'
exit 0"""
    return script(folder, name, body)


def led_in(folder: Path) -> set[int]:
    return {int(file.name) for file in (folder / "led-in").iterdir()}


def calls(folder: Path) -> list[tuple[str, str]]:
    """Command and plugin of each call so far."""
    return [(line.split("\t")[0], line.split("\t")[1]) for line in _lines(folder)]


def inputs(folder: Path) -> list[dict[str, object]]:
    """What each call was given on standard input."""
    return [json.loads(line.split("\t")[4]) for line in _lines(folder)]


def namespaces(folder: Path) -> list[str]:
    return [line.split("\t")[3] for line in _lines(folder)]


def _lines(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def network(*plugins: str | Mapping[str, object], version: str = "1.0.0", **members: object) -> Network:
    listed = [{"type": plugin} if isinstance(plugin, str) else plugin for plugin in plugins]
    document = {"cniVersion": version, "name": "lab", "plugins": listed, **members}
    return parse(json.dumps(document).encode(), "a test")
