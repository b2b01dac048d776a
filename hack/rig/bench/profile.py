"""Where the milliseconds go, step by step, in a start, a restart after a crash, a resume and a purge.

``hack/bench NAME --profile`` puts what its user saw (answers, watch events, the first line of output) and what the
processes log at DEBUG on one axis; what stands between two of them is waiting, looking and planning. The reading of
lines and the rendering are pure.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from rig.bench.cluster import Json, Seen
from rig.bench.results import Row, columns, percentile
from rig.bench.stage import Stage, Subject
from rig.progress import say

ALWAYS_NEW = frozenset({"resourceVersion", "managedFields", "generation"})
"""Fields of metadata that change with every write and tell nothing."""
CHAPTERS = ("start", "kill -9", "stop", "resume", "purge")


@dataclass(frozen=True, slots=True)
class Span:
    """Something that happened: from where to where, in seconds after the chapter began."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Window:
    """One chapter of one life, in seconds since the epoch."""

    uid: str
    begin: float
    end: float


@dataclass(slots=True)
class Told:
    """What was seen of one chapter of many lives."""

    windows: list[Window] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    """By the user; those from the log are added at the end."""


def log_spans(lines: Iterable[str], windows: Sequence[Window]) -> list[Span]:
    """Spans of these windows from a process's JSON log: steps with their duration, other lines as instants.

    The same name again within one window gets a number.
    """
    by_uid: dict[str, list[Window]] = defaultdict(list)
    for window in windows:
        by_uid[window.uid].append(window)
    found: dict[Window, list[Span]] = defaultdict(list)
    for line in lines:
        entry = json.loads(line) if line.startswith("{") else {}
        for window in by_uid.get(entry.get("uid", ""), ()):
            at = datetime.fromisoformat(entry["timestamp"]).timestamp()
            if window.begin <= at < window.end:
                name = f"step {entry['step']}" if entry["event"] == "step_done" else f"log {entry['event']}"
                end = at - window.begin
                begin = end - float(entry.get("seconds", 0.0))
                found[window].append(Span(_numbered(name, found[window]), begin, end))
    return [span for spans in found.values() for span in spans]


def _numbered(name: str, before: Sequence[Span]) -> str:
    again = sum(span.name.partition(" #")[0] == name for span in before)
    return f"{name} #{again + 1}" if again else name


def profile_rows(chapter: str, spans: Iterable[Span]) -> list[Row]:
    """Median duration of every name, in the order of their median beginning, which stands in the notes."""
    rows = []
    for name, same in _in_order(spans):
        takes, begins = [span.end - span.begin for span in same], [span.begin for span in same]
        note = f"begins {percentile(begins, 50) * 1000:.1f} ms after the chapter"
        rows.append(Row(f"{chapter}: {name}", "ms", percentile(takes, 50) * 1000, len(same), notes=note))
    return rows


def render_profile(chapters: Mapping[str, Sequence[Span]]) -> str:
    """A table for each chapter: what, when it begins (p50), how long it takes (p50, p95), how often."""
    lines: list[tuple[str, ...]] = []
    for chapter, spans in chapters.items():
        lines.append((f"--- {chapter}", "begins ms", "takes p50", "takes p95", "n"))
        for name, same in _in_order(spans):
            takes, begins = [span.end - span.begin for span in same], [span.begin for span in same]
            cells = (percentile(begins, 50), percentile(takes, 50), percentile(takes, 95))
            lines.append((name, *(f"{cell * 1000:.1f}" for cell in cells), str(len(same))))
    return "\n".join(columns(lines)) + "\n"


def _in_order(spans: Iterable[Span]) -> list[tuple[str, list[Span]]]:
    by_name: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_name[span.name].append(span)
    return sorted(by_name.items(), key=lambda item: (percentile([span.begin for span in item[1]], 50), item[0]))


async def profile(stage: Stage, n: int, spec: Json) -> dict[str, list[Span]]:
    """``n`` lives, one at a time, with these fields of the spec; Perdure must run with its log at DEBUG."""
    told = {chapter: Told() for chapter in CHAPTERS}
    for i in range(n):
        if i % max(1, n // 10) == 0:
            say(f"    lives: {i} of {n}")
        await _live_once(stage, told, spec)
    for daemon in stage.processes:
        lines = daemon.log.read_text(errors="replace").splitlines()
        for chapter in told.values():
            chapter.spans += log_spans(lines, chapter.windows)
    return {chapter: seen.spans for chapter, seen in told.items()}


async def _live_once(stage: Stage, told: Mapping[str, Told], spec: Json) -> None:
    subject = await Subject.create(stage, **spec)
    lines = {"start": 1, "kill -9": 2, "resume": 3}
    for chapter in CHAPTERS:
        # What is told of one chapter ends where the next begins, so that what follows its goal is in it, too.
        began = subject.began if chapter == "start" else time.perf_counter()
        spans = told[chapter].spans
        match chapter:
            case "start":
                spans.append(Span("user: POST", 0.0, subject.posted - began))
                await subject.ready(began)
            case "kill -9":
                subject.kill()
                await subject.ready(began, restarts=1)
            case "stop" | "resume":
                await stage.cluster.patch(subject.name, desiredState="Stopped" if chapter == "stop" else "Running")
                spans.append(Span("user: PATCH", 0.0, time.perf_counter() - began))
                await (subject.phase("Stopped", began) if chapter == "stop" else subject.ready(began))
            case _:
                history = stage.cluster.history(subject.name)
                await subject.delete()
                spans += _events(history, began)
        if chapter in lines:
            at = await subject.spoke(lines[chapter]) - began
            spans.append(Span("user: first line", at, at))
        spans += _events(stage.cluster.history(subject.name), began)
        epoch = time.time() - time.perf_counter()
        told[chapter].windows.append(Window(subject.uid, began + epoch, time.time()))


def _events(history: Sequence[Seen], began: float) -> list[Span]:
    spans: list[Span] = []
    for before, seen in zip([None, *history], history, strict=False):
        if seen.at >= began:
            name = _numbered(f"watch: {_change(before, seen)}", spans)
            spans.append(Span(name, seen.at - began, seen.at - began))
    return spans


def _change(before: Seen | None, seen: Seen) -> str:
    """What an event told that the one before it had not: who wrote what is seen in it."""
    if before is None or seen.type != "MODIFIED":
        return seen.type.lower()
    changed = [
        f"{part}.{key}"
        for part in ("metadata", "spec", "status")
        for key in sorted({**before.object.get(part, {}), **seen.object.get(part, {})})
        if before.object.get(part, {}).get(key) != seen.object.get(part, {}).get(key) and key not in ALWAYS_NEW
    ]
    return ", ".join(changed)
