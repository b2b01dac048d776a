"""The process that `test_kills` kills: one export or restore through the port, announced on standard output."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
from tests.integration.archive.layers import NODE, Place, request

from perdure.archive.local import LocalStore
from perdure.plan.world import ArchiveFacts


async def main() -> None:
    base, what = Path(sys.argv[1]), sys.argv[2]
    place = Place(base, LocalStore(base / "store", NODE, reserve=0))
    sys.stderr.write("ready\n")
    sys.stderr.flush()
    if what == "export":
        await place.store.export(request(), place.source)
    else:
        await place.store.restore(msgspec.json.decode(what, type=ArchiveFacts), place.fresh)


if __name__ == "__main__":
    asyncio.run(main())
