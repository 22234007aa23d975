"""A TCP proxy on loopback that holds every reply back for a while: a store that has become slow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Delay:
    """`seconds` each reply waits; may be changed while connections are open."""

    seconds: float = 0.0
    port: int = 0
    _ready: threading.Event = field(default_factory=threading.Event)


@contextmanager
def delayed(host: str, port: int) -> Iterator[Delay]:
    """Forward a free port of 127.0.0.1 to `host:port` inside the block."""
    delay = Delay()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(_serve(delay, host, port),), daemon=True)
    thread.start()
    delay._ready.wait()
    try:
        yield delay
    finally:
        loop.call_soon_threadsafe(_cancel_all, loop)
        thread.join(5)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


async def _serve(delay: Delay, host: str, port: int) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(_pump(reader, up_writer, None), _pump(up_reader, writer, delay))
        except (OSError, asyncio.CancelledError):
            up_writer.close()
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    delay.port = server.sockets[0].getsockname()[1]
    delay._ready.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        server.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: Delay | None) -> None:
    while data := await reader.read(65536):
        if delay is not None and delay.seconds:
            await asyncio.sleep(delay.seconds)
        writer.write(data)
        await writer.drain()
    writer.close()
