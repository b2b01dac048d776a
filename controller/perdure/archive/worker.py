"""The child process that does one archive job: `python -m perdure.archive.worker <pid of the parent>`.

`local` starts it, writes a `jobs.Job` to its standard input and reads `jobs.Answer` lines from its standard output. It
holds no lock, thread or memory of the agent, and the kernel ends it (and all that it started) when the agent dies.
"""

from __future__ import annotations

import sys
import time

import msgspec

from perdure.archive import comparison, extractor, writer
from perdure.archive.faults import Fault
from perdure.archive.isolation import isolate
from perdure.archive.jobs import LONGEST_MESSAGE, Answer, Compare, Done, Export, Failed, Job, Progress, Restore, Verify
from perdure.archive.manifest import Manifest

_PROGRESS_SECONDS = 1.0


def _say(answer: Answer) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


class _Ticker:
    """Says `Progress`, at most once a second however often it is called."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._said >= _PROGRESS_SECONDS:
            self._said = now
            _say(Progress())


def _run(job: Job) -> Manifest:
    tick = _Ticker()
    match job:
        case Export():
            return writer.export(job, tick)
        case Verify():
            return extractor.verify(job, tick)
        case Compare():
            return comparison.compare(job, tick)
        case Restore():
            return extractor.restore(job, tick)


def _done(manifest: Manifest) -> Done:
    return Done(
        sha256=manifest.sha256,
        bytes=manifest.bytes,
        uncompressed_bytes=manifest.uncompressed_bytes,
        entries=manifest.contents.entries,
        empty=manifest.empty,
    )


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    isolate(parent=int(sys.argv[1]))
    try:
        _say(_done(_run(job)))
    except Fault as fault:
        _say(Failed(fault.kind, fault.message[:LONGEST_MESSAGE]))


if __name__ == "__main__":
    main()
