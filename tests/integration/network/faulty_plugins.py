"""The reference plugins behind scripts that fail now and then: before, after or in the middle of what the real one does.

A plugin that another one calls, as `bridge` calls `host-local`, is found in the same folder and fails as well.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

FAULTS = (
    "refused",
    "refused-after",
    "hung",
    "hung-after",
    "crashed",
    "killed",
    "killed-halfway",
    "killed-after",
    "garbage",
    "garbage-after",
    "flood",
    "idle",
)
"""`idle` does nothing and says that it succeeded: what its DEL should have taken away is left to be swept."""

SCRIPT = r"""#!/bin/sh
real={real} folder={folder}
read -r drawn </proc/sys/kernel/random/uuid
read -r percent <$folder/percent
number=$((0x${{drawn%%-*}}))
[ $((number % 100)) -lt "$percent" ] || exec $real
number=$((number / 100))

refuse() {{
  case $((number / 24 % 14)) in
    0) said='1,"msg":"incompatible CNI versions"' ;;
    1) said='2,"msg":"unsupported field"' ;;
    2) said='3,"msg":"unknown container"' ;;
    3) said='4,"msg":"invalid environment"' ;;
    4) said='5,"msg":"input/output error"' ;;
    5) said='6,"msg":"decoding failure"' ;;
    6) said='7,"msg":"invalid network config"' ;;
    7) said='8,"msg":"invalid network namespace"' ;;
    8 | 9) said='11,"msg":"try again later"' ;;
    10) said='50,"msg":"plugin not available"' ;;
    11 | 12) said='999,"msg":"failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.2"' ;;
    13) said='999,"msg":"Another app is currently holding the xtables lock"' ;;
  esac
  printf '{{"cniVersion":"1.0.0","code":%s}}' "$said"
  exit 1
}}

tell() {{ echo "$1 $CNI_COMMAND ${{0##*/}}" >>$folder/told; }}

case $((number % 24)) in
  0 | 11 | 12) tell refused; refuse ;;
  1 | 13 | 14) tell refused-after; $real >/dev/null; refuse ;;
  2) tell hung; exec sleep 3600 ;;
  3) tell hung-after; $real; exec sleep 3600 ;;
  4 | 15) tell crashed; echo 'panic: runtime error' >&2; exit 2 ;;
  5 | 16) tell killed; kill -9 $$ ;;
  6 | 17 | 18) tell killed-halfway; exec 3<&0; $real <&3 & sleep 0.0$((number / 24 % 10)); kill -9 $! $$ ;;
  7 | 19) tell killed-after; $real; kill -9 $$ ;;
  8 | 20) tell garbage; echo 'not what {{was asked for'; exit $((number / 24 % 2)) ;;
  9 | 21) tell garbage-after; $real >/dev/null; echo 'not what {{was asked for'; exit $((number / 24 % 2)) ;;
  10) tell flood; exec yes ;;
  22 | 23) tell idle ;;
esac
"""


@dataclass(frozen=True, slots=True)
class FaultyPlugins:
    """`folder` takes the place of `real`, the folder of the plugins."""

    folder: Path
    real: Path

    def write(self) -> None:
        self.folder.mkdir()
        self.fail(0)
        for plugin in self.real.iterdir():
            script = self.folder / plugin.name
            script.write_text(SCRIPT.format(real=plugin, folder=self.folder))
            script.chmod(0o755)

    def fail(self, percent: int) -> None:
        """From now on this share of executions fails."""
        beside = self.folder / ".percent"
        beside.write_text(f"{percent}\n")
        beside.rename(self.folder / "percent")

    def told(self) -> Counter[str]:
        """How often each fault happened."""
        file = self.folder / "told"
        return Counter(line.split()[0] for line in file.read_text().splitlines()) if file.exists() else Counter()
