"""What happens to a container that nobody asked for, and what its probes have come to: the words, without any rule.

Health events end in the ledger's `health_events`. Each kind has one owner, the only rule that ever tells it:

| event                 | owner                                                          |
|-----------------------|----------------------------------------------------------------|
| container_started     | `running.healthy` and the step that starts a task              |
| container_exited      | `running.process_ended`, of an end that nobody asked for       |
| container_oom         | `memory`, also where the main process lives on                 |
| container_disappeared | `running.process_ended`, of a task on record that is not there |
| inspect_unhealthy     | `network.network_is_whole`, of a live process                  |
| probe_failed          | `probes.results_count`                                         |
| probe_recovered       | `probes.results_count`                                         |

What we stop or remove ourselves (by wish, for an edit, for a deletion, for a failed probe) is no incident: the
operation's row, or `probe_failed`, says it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from perdure.api.runtime import RuntimeSpec

MESSAGE_CHARACTERS = 1024
"""Most that is kept of what a probe or an engine said."""


class HealthKind(StrEnum):
    STARTED = "container_started"
    EXITED = "container_exited"
    OOM = "container_oom"
    DISAPPEARED = "container_disappeared"
    INSPECT_UNHEALTHY = "inspect_unhealthy"
    PROBE_FAILED = "probe_failed"
    PROBE_RECOVERED = "probe_recovered"


class ProbeKind(StrEnum):
    STARTUP = "startup"
    READINESS = "readiness"
    LIVENESS = "liveness"


@dataclass(frozen=True, slots=True)
class HealthEvent:
    """One thing that happened; when and to whom is added where it is written."""

    kind: HealthKind
    message: str = ""
    probe: ProbeKind | None = None
    code: int | None = None
    """Of the exit, where the engine knows it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What as many results in a row as the threshold asks for have come to."""

    passed: bool
    message: str = ""
    """What the last result said, at most `MESSAGE_CHARACTERS`; empty for a success."""


@dataclass(frozen=True, slots=True)
class ProbeFacts:
    """What the probes of the task that is seen have come to since this process asks them. None: nothing yet."""

    startup: Verdict | None = None
    readiness: Verdict | None = None
    liveness: Verdict | None = None


NOTHING_PROBED = ProbeFacts()


@dataclass(frozen=True, slots=True)
class Health:
    """What probes have come to for the task that was started last. Journalled when it changes: after a restart of the agent
    it holds until as many new results as the threshold asks for say otherwise, so that nothing flaps."""

    started: bool = False
    """The startup probe has passed: from then on the others count."""
    ready: bool | None = None
    """None: the readiness probe has come to nothing yet."""
    message: str = ""
    """Why it is not ready."""
    ended_for: str = ""
    """Why the task is ended by us: its startup or liveness probe failed."""
    failing: tuple[ProbeKind, ...] = ()
    """Probes that were told to have failed, and not yet to have recovered; outlives the task."""
    ooms: int = 0
    """Kills for want of memory that were told."""
    oom_at: float = 0.0
    """When."""
    damage: str = ""
    """What was found wrong with the live container and told, until it is found whole again."""

    def of_next_task(self) -> Health:
        """What is left of it when the task has ended."""
        return Health(failing=self.failing)

    def with_failing(self, probe: ProbeKind) -> Health:
        return replace(self, failing=tuple(sorted({*self.failing, probe})))

    def without_failing(self, probe: ProbeKind) -> Health:
        return replace(self, failing=tuple(kind for kind in self.failing if kind is not probe))


NO_HEALTH = Health()


def has_come_up(spec: RuntimeSpec, health: Health) -> bool:
    """Whether the other probes count: the startup probe has passed. One that was added to what was ready asks no more."""
    return spec.startup_probe is None or health.started or health.ready is True
