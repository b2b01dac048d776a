"""A way to PostgreSQL that breaks when told to: a unix socket that passes everything on, until it is armed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path


class Cut(Enum):
    """Where a connection breaks, as its client sees it: both look the same to it."""

    BEFORE_THE_SERVER_HEARS = "before"
    BEFORE_THE_CLIENT_HEARS = "after"


@dataclass(slots=True)
class Severing:
    """Serves `<folder>/.s.PGSQL.5432` while it is entered. `armed` breaks the next request, once."""

    folder: Path
    server: Path
    """The folder of the server's own socket."""
    armed: Cut | None = None
    severed: int = 0
    _listening: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> Severing:
        self._listening = await asyncio.start_unix_server(self._serve, self.folder / ".s.PGSQL.5432")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listening is not None
        self._listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server, to_server = await asyncio.open_unix_connection(self.server / ".s.PGSQL.5432")
        try:
            await self._pass_on(reader, to_server, server, writer)
        finally:
            to_server.close()
            writer.close()
            self._tasks.discard(task)

    async def _pass_on(
        self,
        client: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
    ) -> None:
        """Until either side ends, or it is severed: a request that is heard, or its answer, goes nowhere."""
        cut: Cut | None = None
        said, answered = asyncio.ensure_future(client.read(65536)), asyncio.ensure_future(server.read(65536))
        try:
            while True:
                await asyncio.wait((said, answered), return_when=asyncio.FIRST_COMPLETED)
                if said.done():
                    if self.armed is not None:
                        cut, self.armed, self.severed = self.armed, None, self.severed + 1
                    if cut is Cut.BEFORE_THE_SERVER_HEARS or not said.result():
                        return
                    to_server.write(said.result())
                    said = asyncio.ensure_future(client.read(65536))
                if answered.done():
                    if cut is Cut.BEFORE_THE_CLIENT_HEARS or not answered.result():
                        return
                    to_client.write(answered.result())
                    answered = asyncio.ensure_future(server.read(65536))
        finally:
            for reading in (said, answered):
                reading.cancel()
            await asyncio.gather(said, answered, return_exceptions=True)
