"""A proxy that makes a server look far away."""

from __future__ import annotations

import asyncio
import contextlib


class Link:
    """Accepts connections and forwards all data to and from a server after half a round trip.

    The first data on a new connection is delayed by another round trip, for the TCP handshake: the system
    accepts connections on loopback immediately.

    Args:
        port: The port of the server.
        round_trip: Seconds for a round trip.
    """

    def __init__(self, port: int, round_trip: float) -> None:
        self._port = port
        self._round_trip = round_trip

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        opened_at = asyncio.get_running_loop().time() + self._round_trip
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        with contextlib.closing(writer), contextlib.closing(server_writer), contextlib.suppress(OSError):
            await asyncio.gather(
                self._pass_on(reader, server_writer, opened_at),
                self._pass_on(server_reader, writer, opened_at),
            )

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, opened_at: float
    ) -> None:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def read() -> None:
            data = b"-"
            while data:
                data = await reader.read(2**16)
                arrived.put_nowait((max(loop.time(), opened_at), data))

        reading = asyncio.create_task(read())
        while True:
            at, data = await arrived.get()
            await asyncio.sleep(at + self._round_trip / 2 - loop.time())
            if not data:
                writer.write_eof()
                return await reading
            writer.write(data)
