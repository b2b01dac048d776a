"""Where the milliseconds of one start go, step by step, from what the processes log at DEBUG.

``hack/bench start --profile`` puts the user's own times (POST, watch events) and the agent's lines on one axis; what
stands between two of them is waiting, looking and planning. The reading of lines is pure.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from perdure.api.names import LABEL_NODE_ID
from rig.bench.results import Row, columns, percentile
from rig.bench.stage import Stage, Subject
from rig.progress import say


@dataclass(frozen=True, slots=True)
class Span:
    """Something that happened in one start: from where to where, in seconds after the POST was sent."""

    name: str
    begin: float
    end: float


def log_spans(lines: Iterable[str], sent: dict[str, float]) -> dict[str, list[Span]]:
    """Spans by uid from a process's JSON log: steps with their duration, other lines as instants.

    ``sent`` has when the POST of each uid was sent (seconds since the epoch); lines about other uids are left out. The
    same name again within one start gets a number.
    """
    found: dict[str, list[Span]] = defaultdict(list)
    for line in lines:
        if not line.startswith("{"):
            continue
        entry = json.loads(line)
        zero = sent.get(entry.get("uid", ""))
        if zero is None:
            continue
        end = datetime.fromisoformat(entry["timestamp"]).timestamp() - zero
        name = f"step {entry['step']}" if entry["event"] == "step_done" else f"log {entry['event']}"
        spans = found[entry["uid"]]
        again = sum(span.name.partition(" #")[0] == name for span in spans)
        spans.append(Span(f"{name} #{again + 1}" if again else name, end - float(entry.get("seconds", 0.0)), end))
    return found


def profile_rows(starts: Sequence[Sequence[Span]]) -> list[Row]:
    """Median begin and duration of every name, in the order of their beginning."""
    by_name: dict[str, list[Span]] = defaultdict(list)
    for spans in starts:
        for span in spans:
            by_name[span.name].append(span)
    rows = [
        Row(
            name=name,
            unit="ms",
            ours=percentile([span.end - span.begin for span in spans], 50) * 1000,
            n=len(spans),
            notes=f"begins {percentile([span.begin for span in spans], 50) * 1000:.1f} ms after the POST was sent",
        )
        for name, spans in by_name.items()
    ]
    begins = {name: percentile([span.begin for span in spans], 50) for name, spans in by_name.items()}
    return sorted(rows, key=lambda row: (begins[row.name], row.name))


def render_profile(starts: Sequence[Sequence[Span]]) -> str:
    """The profile as a table: what, begin p50, duration p50 and p95, how often."""
    by_name: dict[str, list[Span]] = defaultdict(list)
    for spans in starts:
        for span in spans:
            by_name[span.name].append(span)
    lines: list[tuple[str, ...]] = [("", "begins ms", "takes p50", "takes p95", "n")]
    for row in profile_rows(starts):
        spans_of = by_name[row.name]
        takes = [span.end - span.begin for span in spans_of]
        begin = percentile([span.begin for span in spans_of], 50)
        cells = (begin, percentile(takes, 50), percentile(takes, 95))
        lines.append((row.name, *(f"{cell * 1000:.1f}" for cell in cells), str(len(spans_of))))
    return "\n".join(columns(lines)) + "\n"


async def profile(stage: Stage, n: int) -> list[list[Span]]:
    """``n`` starts, one at a time; Perdure must run with its log at DEBUG."""
    sent: dict[str, float] = {}
    by_user: dict[str, list[Span]] = {}
    for i in range(n):
        if i % max(1, n // 10) == 0:
            say(f"    starts: {i} of {n}")
        epoch = time.time() - time.perf_counter()
        subject = await Subject.create(stage)
        ready = await subject.ready(subject.began)
        bound = await stage.cluster.seen(
            subject.name,
            lambda seen: LABEL_NODE_ID in seen.object["metadata"].get("labels", {}),
            "bound",
            since=subject.began,
        )
        line = await subject.spoke()
        sent[subject.uid] = subject.began + epoch
        instants = {"user: binding seen": bound.at, "user: Ready seen": ready, "user: first line": line}
        spans = [Span("user: POST", 0.0, subject.posted - subject.began)]
        spans += [Span(name, 0.0, at - subject.began) for name, at in instants.items()]
        by_user[subject.uid] = spans
        # What follows is about the end of this life: it must not be taken for its start.
        logged = _read_logs(stage, {subject.uid: sent[subject.uid]})
        by_user[subject.uid] += logged.get(subject.uid, [])
        await subject.delete()
    return list(by_user.values())


def _read_logs(stage: Stage, sent: dict[str, float]) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = defaultdict(list)
    for daemon in stage.processes:
        for uid, spans in log_spans(daemon.log.read_text(errors="replace").splitlines(), sent).items():
            found[uid] += spans
    return found
