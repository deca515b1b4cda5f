"""The listening socket: accept, look after connections, and close them at the end."""

from __future__ import annotations

import asyncio
import socket

from lambent.frontend.connection import Application, Clock, Connection

_SWEEP_S = 5.0
_BACKLOG = 4_096


def bind(host: str, port: int) -> socket.socket:
    """Bind before privileges are given up. Raises OSError when the address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


class Listener:
    def __init__(self, application: Application) -> None:
        self._application = application
        self._connections: set[Connection] = set()
        self._clock = Clock()
        self._server: asyncio.Server | None = None
        self._upkeep: asyncio.Task[None] | None = None

    async def start(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._application, self._connections, self._clock, loop),
            sock=sock,
            backlog=_BACKLOG,
        )
        self._upkeep = loop.create_task(self._keep_up(loop))

    async def _keep_up(self, loop: asyncio.AbstractEventLoop) -> None:
        next_sweep = loop.time() + _SWEEP_S
        while True:
            await asyncio.sleep(1.0)
            self._clock.renew()
            now = loop.time()
            if now >= next_sweep:
                next_sweep = now + _SWEEP_S
                for connection in list(self._connections):
                    connection.sweep(now)

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    def stop_accepting(self) -> None:
        """No new connections; idle ones close, busy ones after their answer."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.finish()

    async def close(self) -> None:
        """Let answers that were written leave, then cut what is left."""
        if self._upkeep is not None:
            self._upkeep.cancel()
        for _ in range(20):
            if not self._connections:
                break
            await asyncio.sleep(0.005)
        for connection in list(self._connections):
            connection.abort()
